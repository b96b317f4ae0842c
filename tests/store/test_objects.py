import time

import fsspec
import pytest

from fiat_jax.errors import UserError
from fiat_jax.store import ReasoningStore
from fiat_jax.store.objects import ObjectShelf, PartWriter


@pytest.fixture
def url():
    yield "memory://bucket/store"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_object_store_holds_what_a_directory_holds(url, provenance, record):
    store = ReasoningStore(url)
    with store.open_set(provenance) as writer:
        writer.append(record(1), record(2))
    with store.open_set(provenance) as writer:
        writer.append(record(3))
    assert store.lookup(provenance.set_key) == {r.key: r for r in map(record, [1, 2, 3])}
    assert store.sets() == {provenance.set_key: provenance}
    assert store.missing(provenance.set_key, ["row3", "row4"]) == [("row4", 0)]
    assert store.verify() == []
    for model in ("big", "bigger"):
        store.note_backend(provenance.set_key, {"model": model})
    assert store.backend(provenance.set_key) == {"model": "bigger"}


def test_a_part_is_never_overwritten(url):
    shelf = ObjectShelf(url)
    shelf.write_once("set/parts/a.jsonl", b"first")
    shelf.write_once("set/parts/a.jsonl", b"second")
    assert shelf.read("set/parts/a.jsonl") == b"first"


def test_records_wait_no_longer_than_the_bound(url, provenance, record):
    store = ReasoningStore(url)
    store.open_set(provenance)
    writer = PartWriter(ObjectShelf(url), provenance.set_key, flush_seconds=0.05)
    writer.append(record(1))
    assert store.lookup(provenance.set_key) == {}
    deadline = time.monotonic() + 10
    while not store.lookup(provenance.set_key) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(store.lookup(provenance.set_key)) == [("row1", 0)]


def test_a_failed_flush_is_raised_to_the_caller_and_loses_nothing(url, provenance, record):
    class Refusing(ObjectShelf):
        refuses = True

        def write_once(self, name, data):
            if self.refuses:
                raise PermissionError("403")
            super().write_once(name, data)

    shelf = Refusing(url)
    writer = PartWriter(shelf, provenance.set_key, flush_seconds=0.01)
    writer.append(record(1))
    time.sleep(0.2)
    with pytest.raises(PermissionError):
        writer.append(record(2))
    shelf.refuses = False
    writer.seal()
    assert set(ReasoningStore(url).lookup(provenance.set_key)) == {("row1", 0), ("row2", 0)}


def test_an_unknown_protocol_is_a_clear_error():
    with pytest.raises(UserError, match="nosuch://bucket"):
        ReasoningStore("nosuch://bucket/store")
