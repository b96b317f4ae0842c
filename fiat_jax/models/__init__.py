"""Decoders in Flax NNX, their adapters, and Hugging Face weights in and out."""
