"""The embedded world: a generated task, reasoning and checkpoint, and the whole line run on them."""
