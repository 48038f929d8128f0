"""Measurements, each a ratio against a baseline from the same minutes."""
