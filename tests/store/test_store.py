import logging
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fiat_jax.errors import UserError
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.store.record import encode_line


def test_what_was_appended_is_found_before_and_after_sealing(store, provenance, record):
    with store.open_set(provenance) as writer:
        writer.append(record(1), record(2))
        writer.append(record(1, sample=1))
        before = store.lookup(provenance.set_key)
    assert before == store.lookup(provenance.set_key) == {r.key: r for r in [record(1), record(2), record(1, sample=1)]}
    assert store.verify() == []


def test_several_writers_work_on_one_set_at_once(store, provenance, record):
    def write(worker):
        with store.open_set(provenance) as writer:
            for number in range(worker * 20, worker * 20 + 20):
                writer.append(record(number))
                store.open_set(provenance)  # adopts journals of the dead, and must leave those of the living

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert store.lookup(provenance.set_key) == {r.key: r for r in map(record, range(80))}
    assert store.verify() == []


def test_a_reader_misses_nothing_while_a_writer_seals(store, provenance, record):
    acknowledged = []

    def write():
        with store.open_set(provenance) as writer:
            for number in range(150):
                writer.append(record(number))
                acknowledged.append((f"row{number}", 0))
                writer.seal()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            known = list(acknowledged)
            assert set(known) <= store.lookup(provenance.set_key).keys()
        writing.result()


def test_only_what_is_not_stored_is_missing(store, provenance, record):
    with store.open_set(provenance) as writer:
        writer.append(record(1), record(2, sample=1))
    assert store.missing(provenance.set_key, ["row2", "row1", "row3", "row2"], samples=2) == [
        ("row2", 0), ("row1", 1), ("row3", 0), ("row3", 1),
    ]  # fmt: skip
    assert store.missing("0" * 16, ["row1"]) == [("row1", 0)]


def test_wherever_a_journal_is_cut_the_whole_lines_are_found_and_the_torn_one_is_named(
    store, provenance, record, caplog
):
    writer = store.open_set(provenance)
    writer.append(record(1), record(2), record(3))
    (journal,) = (Path(store.path) / provenance.set_key / "journals").iterdir()
    data = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data)):
        journal.write_bytes(data[:size])
        contents = store.contents(provenance.set_key)
        assert len(contents.records) == sum(end <= size for end in ends)
        assert len(contents.problems) == (size not in (0, *ends))
    with caplog.at_level(logging.WARNING):
        store.lookup(provenance.set_key)
    assert "line 3: left out: the line is incomplete" in caplog.text


def test_a_torn_journal_of_a_dead_writer_is_sealed_without_its_torn_line(store, provenance, record):
    writer = store.open_set(provenance)
    writer.append(record(1), record(2))
    (journal,) = (Path(store.path) / provenance.set_key / "journals").iterdir()
    dead = journal.with_name(f"1-dead{journal.name[journal.name.index('@') :]}")
    dead.write_bytes(encode_line(record(3)) + encode_line(record(4))[:-5])
    store.open_set(provenance)
    assert journal.exists(), "the journal of a living writer was taken from it"
    assert not dead.exists()
    assert set(store.lookup(provenance.set_key)) == {("row1", 0), ("row2", 0), ("row3", 0)}
    assert store.verify() == []


def test_a_damaged_part_is_found_and_its_other_lines_are_kept(store, provenance, record):
    with store.open_set(provenance) as writer:
        writer.append(record(1), record(2), record(3))
    (part,) = (Path(store.path) / provenance.set_key / "parts").iterdir()
    part.write_bytes(part.read_bytes().replace(b"Because 2.", b"Because 9."))
    assert set(store.lookup(provenance.set_key)) == {("row1", 0), ("row3", 0)}
    assert [str(p) for p in store.verify()] == [
        f"{provenance.set_key}/parts/{part.name}: does not hash to its name",
        f"{provenance.set_key}/parts/{part.name} line 2: left out: checksum does not match",
    ]


def test_which_of_two_differing_records_counts_does_not_depend_on_who_was_first(tmp_path, provenance, record):
    chosen = []
    for sealed, journaled in ([5, 6], [6, 5]):
        store = ReasoningStore(tmp_path / f"store{sealed}")
        with store.open_set(provenance) as writer:
            writer.append(record(1, seed=sealed))
        writer = store.open_set(provenance)
        writer.append(record(1, seed=journaled))
        chosen.append(store.lookup(provenance.set_key))
        assert "stored twice and differs" in str(store.verify()[0])
    assert chosen[0] == chosen[1]


def test_append_returns_only_after_the_bytes_are_synced(store, provenance, record, monkeypatch):
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    writer = store.open_set(provenance)
    calls.clear()
    writer.append(record(1), record(2))
    assert calls[-2:] == ["write", "fsync"]
    writer.seal()
    assert calls[calls.index("replace") + 1 :] == ["fsync", "fsync"], (
        "the rename is not durable before its directories are"
    )


def test_a_full_disk_keeps_what_was_stored_and_says_what_to_do(store, provenance, record, monkeypatch):
    writer = store.open_set(provenance)
    writer.append(record(1))
    real = os.write

    def half(fd, data):
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(fd, data[:50])

    monkeypatch.setattr(os, "write", lambda fd, data: half(fd, data[:120]))
    with pytest.raises(UserError, match=r"No space left.*run the\s+same command again"):
        writer.append(record(2))
    monkeypatch.undo()
    writer.append(record(3))
    writer.seal()
    assert set(store.lookup(provenance.set_key)) == {("row1", 0), ("row3", 0)}
    store.open_set(provenance)
    assert store.verify() == []


def test_sets_are_listed_with_what_made_them_and_found_by_a_prefix(store, provenance):
    other = Provenance(model={"name": "PaLM 540B"}, source="imported", mapping={"rationale": "reasoning"})
    with store.open_set(provenance), store.open_set(other):
        pass
    assert store.sets() == {provenance.set_key: provenance, other.set_key: other}
    assert store.resolve(other.set_key[:6]) == other.set_key
    with pytest.raises(UserError, match=r"name one with --gin\.Reasoning\.set=KEY\. It holds:(.|\n)*PaLM 540B"):
        store.resolve()
    with pytest.raises(UserError, match="no set 'zz'"):
        store.provenance("zz")


def test_damaged_provenance_is_an_error_that_names_its_file(store, provenance):
    store.open_set(provenance)
    (Path(store.path) / provenance.set_key / "provenance.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"provenance\.json is damaged"):
        store.provenance(provenance.set_key)
    assert len(store.verify()) == 1


def test_how_a_set_was_last_asked_is_kept_beside_it_and_names_no_other_set(store, provenance, record):
    with store.open_set(provenance) as writer:
        writer.append(record(1))
    assert store.backend(provenance.set_key) is None
    for about in ({"kind": "openai", "model": "big"}, {"kind": "native", "path": "/weights"}):
        store.note_backend(provenance.set_key, about)
        assert store.backend(provenance.set_key) == about
    assert store.sets() == {provenance.set_key: provenance}
    assert store.verify() == []
    (Path(store.path) / provenance.set_key / "backend.json").write_text("{")
    with pytest.raises(UserError, match=r"backend\.json is damaged.*remove it"):
        store.backend(provenance.set_key)


def test_a_set_without_its_provenance_is_found(store, provenance, record):
    with store.open_set(provenance) as writer:
        writer.append(record(1))
    (Path(store.path) / provenance.set_key / "provenance.json").unlink()
    (problem,) = store.verify()
    assert (problem.file, problem.damage) == (f"{provenance.set_key}/provenance.json", True)


def test_a_line_that_a_writer_did_not_finish_is_no_damage_but_in_a_part_it_is(store, provenance, record):
    writer = store.open_set(provenance)
    writer.append(record(1), record(2))
    folder = Path(store.path) / provenance.set_key
    (journal,) = (folder / "journals").iterdir()
    journal.write_bytes(journal.read_bytes()[:-3])
    assert [problem.damage for problem in store.verify()] == [False]
    part = folder / "parts" / journal.name
    part.parent.mkdir()
    journal.rename(part)
    assert [problem.damage for problem in store.verify()] == [True, True]


def test_every_set_is_inspected_with_what_it_holds(store, provenance, record):
    other = Provenance(model={"name": "PaLM 540B"}, source="imported")
    with store.open_set(provenance) as writer:
        writer.append(record(1), record(2))
        writer.seal()
        writer.append(record(2), record(3))
    store.open_set(other)
    found = {one.set_key: one for one in store.inspect()}
    assert (found[provenance.set_key].files, found[provenance.set_key].records) == (2, 3)
    assert (found[other.set_key].provenance, found[other.set_key].records) == (other, 0)


@pytest.mark.parametrize("read", ["missing", "verify", "records"])
def test_reading_a_set_holds_no_texts_in_memory(store, provenance, record, read):
    with store.open_set(provenance) as writer:
        for number in range(300):
            writer.append(record(number, text=f"{number} " * 5000))
    stored = sum(path.stat().st_size for path in Path(store.path).rglob("*.jsonl"))
    tracemalloc.start()
    try:
        if read == "missing":
            assert len(store.missing(provenance.set_key, [f"row{number}" for number in range(400)])) == 100
        elif read == "verify":
            assert store.verify() == []
        else:
            assert sum(1 for _ in store.records(provenance.set_key)) == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored > 5e6
    assert peak < stored / 10
