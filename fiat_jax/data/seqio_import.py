"""seqio and TensorFlow without their start-up lines. Import this inside functions only: it costs 5 s and 900 MB."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stderr_kept_for_failures() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, by C++ too; write it out after all if the body raises."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(original, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)


# Errors of the pipeline come back as exceptions; the log would repeat them with a C++ trace.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # JAX has set it to 1
with stderr_kept_for_failures():
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take the whole memory of the GPU that JAX needs
    tf.constant(0)  # the first tensor makes it look for devices, and say what it did not find

__all__ = ["seqio", "tf"]
