"""Tasks as seqio Tasks, the tokenised cache, packing and batches; TensorFlow is imported here alone, lazily."""
