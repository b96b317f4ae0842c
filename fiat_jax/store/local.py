"""A store in a POSIX directory: fsynced append journals, sealed into parts by one rename.

A journal and a part hold the same lines, so sealing copies nothing and a record is never in two places. A part is
named by the SHA-256 of its bytes. The lock on a journal tells a living writer from one that was killed.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fiat_jax.errors import UserError
from fiat_jax.store.record import Record, encode_line


class LocalShelf:
    """The files of a store under a local directory: SET/provenance.json, SET/parts/*.jsonl, SET/journals/*.jsonl."""

    def __init__(self, root: Path):
        self.root = root

    def sets(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/provenance.json"))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def folders(self) -> list[str]:
        """The names of all sets that hold records, also of those whose provenance is lost."""
        return sorted({path.parent.parent.name for path in self.root.glob("*/*/*.jsonl")})

    def contents(self, set_key: str) -> Iterator[tuple[str, BinaryIO]]:
        """(name, open file) of every journal, then of every part: a journal sealed meanwhile is then met as a part."""
        for folder in ("journals", "parts"):
            for path in sorted((self.root / set_key / folder).glob("*.jsonl")):
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    yield f"{set_key}/{folder}/{path.name}", file

    def write_once(self, name: str, data: bytes) -> None:
        if not (self.root / name).exists():
            self.write(name, data)

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        _make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot write ({error.strerror}); mend the disk and run again") from error
        os.replace(temporary, path)
        _sync_directory(path.parent)

    def writer(self, set_key: str) -> "JournalWriter":
        return JournalWriter(self.root / set_key)

    def adopt(self, set_key: str) -> int:
        """Seal the journals that killed writers of this host left; returns how many."""
        journals = (self.root / set_key / "journals").glob("*.jsonl")
        return sum(_adopt(path) for path in sorted(journals) if path.name.endswith(f"@{_host()}.jsonl"))


class JournalWriter:
    """Appends records durably to a journal of its own, made at the first record."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._path: Path | None = None
        self._fd = -1
        self._digest = hashlib.sha256()

    def append(self, *records: Record) -> None:
        """Write the records; when this returns they survive a kill and a power cut. One fsync a call."""
        if not records:
            return
        if self._path is None:
            self._path, self._fd = _new_journal(self._directory / "journals")
        data = b"".join(map(encode_line, records))
        try:
            _write_all(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            path = self._path
            self._abandon()
            raise UserError(
                f"{path}: cannot append ({error.strerror}). What was stored before is kept; "
                "mend the disk and run the same command again."
            ) from error
        self._digest.update(data)

    def seal(self) -> None:
        """Turn the journal into a part; the next append begins another one."""
        if self._path is None:
            return
        _rename_to_part(self._path, self._digest.hexdigest())
        os.close(self._fd)
        self._path, self._digest = None, hashlib.sha256()

    def _abandon(self) -> None:
        # half a line would swallow the next one, so a later append begins another journal; this one is adopted later
        os.close(self._fd)
        self._path, self._digest = None, hashlib.sha256()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.seal()


def _adopt(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not _lock(fd, wait=False) or not path.exists():
            return False
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            path.unlink()
            return False
        os.ftruncate(fd, len(whole))
        os.fsync(fd)
        _rename_to_part(path, hashlib.sha256(whole).hexdigest())
        return True
    finally:
        os.close(fd)


def _new_journal(folder: Path) -> tuple[Path, int]:
    _make_directory(folder)
    while True:
        path = folder / f"{os.getpid()}-{secrets.token_hex(4)}@{_host()}.jsonl"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        _lock(fd, wait=True)
        if path.exists():  # else it was adopted, empty, between its making and its lock
            _sync_directory(folder)
            return path, fd
        os.close(fd)


def _lock(fd: int, wait: bool) -> bool:
    # where a file system has no locks nobody obtains one, so nobody adopts: journals are read all the same
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _rename_to_part(journal: Path, digest: str) -> None:
    parts = journal.parent.parent / "parts"
    _make_directory(parts)
    os.replace(journal, parts / f"{digest}.jsonl")
    _sync_directory(parts)
    _sync_directory(journal.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _make_directory(path: Path) -> None:
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_directory(made.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network mounts refuse it for directories
            os.fsync(fd)
    finally:
        os.close(fd)


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "host"
