"""A store in an object store (gs://, s3://, memory:// through fsspec): each part is one conditional write.

There is nothing to append to, so records wait in memory until a part is written: every `FLUSH_SECONDS`, every
`FLUSH_RECORDS`, and at the end. A crash loses at most that. Parts are named by the SHA-256 of their bytes and made with
"create only if absent", so a repeated write is the same object and two writers cannot overwrite each other.
"""

import contextlib
import hashlib
import io
import threading
from collections.abc import Iterator
from typing import BinaryIO

from fiat_jax.remote import explained, open_store
from fiat_jax.store.record import Record, encode_line

FLUSH_SECONDS = 5.0
FLUSH_RECORDS = 2000
READ_AT_ONCE = 16  # parts in memory


class ObjectShelf:
    """The files of a store under a URL: SET/provenance.json and SET/parts/*.jsonl."""

    def __init__(self, url: str):
        self._url = url
        self._files, self._root = open_store(url)

    def sets(self) -> list[str]:
        return sorted(path.split("/")[-2] for path in self._find(self._root) if path.endswith("/provenance.json"))

    def read(self, name: str) -> bytes:
        with explained(f"{self._url}/{name}", FileNotFoundError):
            return self._files.cat_file(f"{self._root}/{name}")

    def folders(self) -> list[str]:
        """The names of all sets that hold records, also of those whose provenance is lost."""
        return sorted({path.split("/")[-3] for path in self._find(self._root) if path.endswith(".jsonl")})

    def contents(self, set_key: str) -> Iterator[tuple[str, BinaryIO]]:
        """(name, file) of every part."""
        paths = [path for path in self._find(f"{self._root}/{set_key}/parts") if path.endswith(".jsonl")]
        for start in range(0, len(paths), READ_AT_ONCE):
            with explained(f"{self._url}/{set_key}"):
                some = self._files.cat(paths[start : start + READ_AT_ONCE])  # one call: reads them at once
            for path, data in sorted(some.items()):
                yield f"{set_key}/parts/{path.split('/')[-1]}", io.BytesIO(data)

    def write_once(self, name: str, data: bytes) -> None:
        # names stand for contents: what is there is the same
        with contextlib.suppress(FileExistsError), explained(f"{self._url}/{name}", FileExistsError):
            self._files.pipe_file(f"{self._root}/{name}", data, mode="create")

    def write(self, name: str, data: bytes) -> None:
        with explained(f"{self._url}/{name}"):
            self._files.pipe_file(f"{self._root}/{name}", data)

    def writer(self, set_key: str) -> "PartWriter":
        return PartWriter(self, set_key)

    def adopt(self, set_key: str) -> int:
        return 0  # parts are whole or absent

    def _find(self, path: str) -> list[str]:
        with explained(self._url):
            self._files.invalidate_cache()
            return sorted(self._files.find(path))


class PartWriter:
    """Collects records and writes them as parts; a thread sees to it that none waits longer than `flush_seconds`."""

    def __init__(self, shelf: ObjectShelf, set_key: str, flush_seconds: float = FLUSH_SECONDS):
        self._shelf, self._set_key, self._flush_seconds = shelf, set_key, flush_seconds
        self._waiting: list[Record] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: Exception | None = None

    def append(self, *records: Record) -> None:
        """Take the records; they are durable after the next flush."""
        with self._lock:
            self._waiting.extend(records)
            self._raise_late_error()
            if len(self._waiting) >= FLUSH_RECORDS:
                self._flush()
            elif self._waiting and self._timer is None:
                self._timer = threading.Timer(self._flush_seconds, self._flush_late)
                self._timer.daemon = True
                self._timer.start()

    def seal(self) -> None:
        """Write what waits, also what a flush by the thread failed to write."""
        with self._lock:
            self._flush()
            self._error = None

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            data = b"".join(map(encode_line, self._waiting))
            self._shelf.write_once(f"{self._set_key}/parts/{hashlib.sha256(data).hexdigest()}.jsonl", data)
            self._waiting = []

    def _flush_late(self) -> None:
        with self._lock:
            try:
                self._flush()
            except Exception as error:  # raised again in the caller's thread, where it can be acted on
                self._error = error

    def _raise_late_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.seal()
