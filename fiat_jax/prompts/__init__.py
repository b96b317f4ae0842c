"""Instruction files, the tokenizer, and the one renderer for training, evaluation and serving."""
