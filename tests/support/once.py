"""What takes long to make, made once a session by whichever of xdist's workers comes first; each has a copy."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object], into: Path) -> Path:
    """Copy into a folder what `make` makes in another, of the session's; return the folder."""
    common = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (common / name).exists():
            scratch = common / f"{name}.begun"
            shutil.rmtree(scratch, ignore_errors=True)  # another worker's, that failed
            scratch.mkdir()
            make(scratch)
            scratch.rename(common / name)
    shutil.copytree(common / name, into, dirs_exist_ok=True)
    return into
