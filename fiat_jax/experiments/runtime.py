"""What a process does once before it computes: join the others, keep compiled programs, say what it runs on."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from fiat_jax.distributed import initialize, is_main
from fiat_jax.errors import UserError
from fiat_jax.training.watch import watched

CACHE_VARIABLE = "FIAT_COMPILATION_CACHE"
PACKAGES = ("fiat-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn")


def start(until_end: contextlib.ExitStack | None = None) -> None:
    """Join the run's processes and turn on the compilation cache on disk (FIAT_COMPILATION_CACHE says where).

    The processes watch each other until `until_end` is closed.
    """
    initialize()
    if until_end is not None:
        until_end.enter_context(watched("the run"))
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fiat_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", os.environ.get(CACHE_VARIABLE, str(default)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hardware() -> dict[str, Any]:
    """Return what a run computed on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }


def write_config(workdir: Path, text: str) -> None:
    """Write WORKDIR/config.gin, the resolved settings."""
    if is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.gin").write_text(text)


@contextlib.contextmanager
def recorded(workdir: Path, text: str) -> Iterator[None]:
    """Write WORKDIR/config.gin beside what is done in context; one that is there gives way to results alone.

    What is refused before it has written anything leaves no working directory behind.
    """
    path, there, existed = workdir / "config.gin", (workdir / "config.gin").exists(), workdir.exists()
    if not there:
        write_config(workdir, text)
    try:
        yield
    except UserError:
        if not there and is_main() and list(workdir.iterdir()) == [path]:
            path.unlink()
            if not existed:
                workdir.rmdir()
        raise
    write_config(workdir, text)
