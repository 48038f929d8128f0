"""Paceline's operator: makes the pods of each DistributedTraining, and tells how it goes."""
