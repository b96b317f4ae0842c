"""Writers are killed with SIGKILL at random moments; whatever they had acknowledged must be there."""

import random
import subprocess
import sys

from fiat_jax.store import ReasoningStore

WRITER = """
import sys
from fiat_jax.store import Provenance, ReasoningStore, Record

path, start, seal_every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
provenance = Provenance(model={"name": "big", "revision": "1"}, prompt_hash="ab" * 32, decoding={"temperature": 0.0})
with ReasoningStore(path).open_set(provenance) as writer:
    for number in range(start, start + 100_000):
        text = f"Because {number}." * 50
        writer.append(Record(provenance.set_key, f"row{number}", 0, f"train-{number}", text, text, "yes", "stop"))
        print(number, flush=True)
        if number % seal_every == 0:
            writer.seal()
"""


def run_and_kill(path, start, seal_every, after):
    """Start a writer, kill it once it has acknowledged `after` records; returns the records that it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), str(start), str(seal_every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(after)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.wait() == -9
    return acknowledged


def test_every_acknowledged_record_survives_kill_9(tmp_path, provenance):
    chance = random.Random(0)
    store = ReasoningStore(tmp_path)
    acknowledged = []
    for run in range(8):
        acknowledged += run_and_kill(
            tmp_path, run * 100_000, seal_every=chance.choice([3, 10**9]), after=chance.randint(1, 40)
        )
        found = store.lookup(provenance.set_key)
        assert {f"row{number}" for number in acknowledged} <= {row for row, _ in found}
        assert all(record.text == f"Because {row[3:]}." * 50 for (row, _), record in found.items())
        assert len(found) <= len(acknowledged) + run + 1, "records appeared that no writer could have written"


def test_the_next_writer_seals_what_the_killed_one_left(tmp_path, provenance):
    acknowledged = run_and_kill(tmp_path, 0, seal_every=10**9, after=5)
    journals = tmp_path / provenance.set_key / "journals"
    assert len(list(journals.iterdir())) == 1
    store = ReasoningStore(tmp_path)
    before = store.lookup(provenance.set_key)
    with store.open_set(provenance):
        assert list(journals.iterdir()) == []
    assert store.lookup(provenance.set_key) == before
    assert len(before) >= len(acknowledged)
    assert store.verify() == []
