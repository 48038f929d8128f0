"""Checkpoints: what a training needs to go on from, whole or not there at all, and never taken unread."""
