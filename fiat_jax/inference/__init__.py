"""Text from a model: greedy generation."""
