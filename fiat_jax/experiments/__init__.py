"""Runs put together: one training, the matrix of paradigms, predictions, exports."""
