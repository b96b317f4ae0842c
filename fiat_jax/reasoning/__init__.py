"""θ_β: its backends, the bulk generator, the import of existing reasoning, and the join with a task's rows."""
