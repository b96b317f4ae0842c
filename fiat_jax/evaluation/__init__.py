"""Predictions of a model on a task, their scores and statistics."""
