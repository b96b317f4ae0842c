"""Paths in an object store (gs://, s3://): working directories with a local double, and inputs fetched once.

An object store has no appending and no renaming, and what reads weights maps them into memory. So a run works in a
local directory and pushes what is new there at every checkpoint; what the store holds is what a later attempt begins
with.
Checkpoints themselves go straight into the store (`checkpoint.py`).
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fiat_jax.errors import UserError

PACKAGES = {"s3": "fiat-jax[s3]", "gs": "fiat-jax[gs]", "gcs": "fiat-jax[gs]"}
MANIFEST = ".fetched.json"
OF_ONE = ("*.safetensors", "events.out.*", "train_log.jsonl")  # what the process that writes reads again, if any does

_doubles: dict[Path, "Double"] = {}


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL."""
    return "://" in str(path)


def open_store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path within it.

    Raises:
        UserError: an unknown protocol, or one whose package is not installed.
    """
    import fsspec.core  # a machine that only computes may be without

    try:
        with explained(url, ImportError, ValueError):  # a client may look for its keys at once
            return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        protocol = url.partition("://")[0]
        more = f"; pip install '{PACKAGES[protocol]}'" if protocol in PACKAGES else ""
        raise UserError(f"{url}: {error}{more}") from None


class Double:
    """A local directory that stands for one in an object store, of this process alone."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._files, self._root = open_store(self.url)
        self.local = Path(tempfile.mkdtemp(prefix="fiat-"))
        self._pushed: dict[str, tuple[int, int]] = {}

    def pull(self, everything: bool = True) -> None:
        """Take up what the store holds; without what one process alone needs, where not everything is asked for."""
        with explained(self.url):
            self._files.invalidate_cache()
            for path in sorted(self._files.find(self._root)):
                name = path.removeprefix(self._root).lstrip("/")
                if _is_doubled(PurePosixPath(name)) and (everything or not _is_of_one(name)):
                    target = self.local / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(path, str(target))
                    self._pushed[name] = _state(target)

    def push(self) -> None:
        """Store what is new or has changed, in the order in which it was written: what names a file comes after it."""
        with explained(self.url):
            for name, state in sorted(self._changed(), key=lambda each: each[1]):
                self._files.put_file(str(self.local / name), f"{self._root}/{name}")
                self._pushed[name] = state

    def _changed(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder, folders, files in os.walk(self.local, followlinks=True):
            inside = Path(folder).relative_to(self.local)
            folders[:] = [folder for folder in folders if _is_doubled(PurePosixPath(inside / folder))]
            for file in files:
                name = (inside / file).as_posix()
                if not file.startswith(".") and self._pushed.get(name) != (state := _state(self.local / name)):
                    yield name, state


def _is_doubled(path: PurePosixPath) -> bool:
    """Whether a part of a working directory has a double: the cache is made anew, checkpoints are in the store."""
    return path.parts[:1] != ("cache",) and "checkpoints" not in path.parts


def _is_of_one(name: str) -> bool:
    return any(PurePosixPath(name).match(pattern) for pattern in OF_ONE)


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@contextlib.contextmanager
def explained(url: str, *expected: type[Exception]) -> Iterator[None]:
    """Say of which URL an error is, but for those that are expected.

    Raises:
        UserError: whatever else was raised; what the clients of stores raise has no common class.
    """
    try:
        yield
    except (UserError, *expected):
        raise
    except Exception as error:
        why = textwrap.shorten(str(error), 300) or type(error).__name__
        raise UserError(
            f"{url} cannot be read or written ({why}); check the name, the rights, the keys and the network"
        ) from error


@contextlib.contextmanager
def doubled(url: str) -> Iterator[Path]:
    """Yield a local directory that begins with what the store has; what is new is stored by `push` and at the end.

    Processes that join a run as its second or later ones leave out what the first alone needs.
    """
    from fiat_jax.distributed import joins_as_another

    double = Double(url)
    _doubles[double.local] = double
    try:
        double.pull(everything=not joins_as_another())
        yield double.local
    finally:
        try:
            if any(double._changed()):
                push(double.local)
        finally:
            del _doubles[double.local]
            shutil.rmtree(double.local, ignore_errors=True)


def url_of(path: str | Path) -> str | None:
    """Return where a path within a double lies in the store; None of any other path."""
    for local, double in _doubles.items():
        if Path(path).is_relative_to(local):
            return f"{double.url}/{Path(path).relative_to(local).as_posix()}"
    return None


def push(path: str | Path) -> None:
    """Store what is new in the double that holds a path, if one does; process 0 alone writes."""
    from fiat_jax.distributed import is_main

    for local, double in _doubles.items():
        if Path(path).is_relative_to(local) and is_main():
            double.push()


def fetched(path: str | Path) -> Path:
    """Return a local path as it is; of a URL, a copy of that file or directory, made where it has changed.

    Copies lie in FIAT_FETCHED, by default ~/.cache/fiat_jax/fetched.

    Raises:
        UserError: nothing is there.
    """
    return _fetched(str(path).rstrip("/")) if is_remote(path) else Path(path)


@functools.cache  # what a process reads twice is the same
def _fetched(url: str) -> Path:
    files, root = open_store(url)
    with explained(url):
        files.invalidate_cache()
        held = {name.removeprefix(root).lstrip("/"): files.ukey(name) for name in files.find(root)}
        if not held:
            raise UserError(f"{url}: there is nothing")
        digest = hashlib.sha256(json.dumps([url, held], sort_keys=True).encode()).hexdigest()
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        folder = Path(os.environ.get("FIAT_FETCHED", home / "fiat_jax" / "fetched")) / digest[:16]
        name = url.rpartition("/")[2]
        if not (folder / MANIFEST).exists():
            _fetch(files, root, held, folder, name)
    return folder / name


def _fetch(files: Any, root: str, held: dict[str, str], folder: Path, name: str) -> None:
    """Fetch into a folder that is there whole or not at all, whoever makes it."""
    scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        for each in held:  # a file's own name is empty
            target = scratch / name / each if each else scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{each}" if each else root, str(target))
        (scratch / MANIFEST).write_text(json.dumps(held, indent=1), "utf-8")
        os.replace(scratch, folder)
    except OSError:
        if not (folder / MANIFEST).exists():  # else another process fetched the same first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
