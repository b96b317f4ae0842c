"""seqio and TensorFlow without their start-up lines. Import this inside functions only: it costs 5 s and 800 MB."""

import importlib.machinery
import importlib.util
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


@contextmanager
def keras_not_installed() -> Iterator[None]:
    """Let TensorFlow be imported as where there is no Keras, which it would load at once; `tf.keras` still does."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # importing it now raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules["keras"]


@contextmanager
def loaded_when_used(module: str) -> Iterator[None]:
    """Let whoever imports a module now have it loaded at the first use of one of its attributes."""

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == module else None
            if spec is not None and spec.loader is not None:
                spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec

    sys.meta_path.insert(0, Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)


# Errors of the pipeline come back as exceptions; the log would repeat them with a C++ trace.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # JAX has set it to 1
with stderr_kept_for_failures():
    # Keras, which nothing here uses, adds 2 s and 160 MB: TensorFlow loads it, and tensorflow_text makes layers of it
    with keras_not_installed():
        import tensorflow as tf
    with loaded_when_used("tensorflow_text.python.keras"):
        import seqio

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take the whole memory of the GPU that JAX needs
    tf.constant(0)  # the first tensor makes it look for devices, and say what it did not find

__all__ = ["seqio", "tf"]
