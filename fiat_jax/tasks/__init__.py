"""What a task is: rows, splits, fields, labels; readers that need no TensorFlow."""
