"""The record of a run, and who is told."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from fiat_jax.errors import UserError
from fiat_jax.training.log import FLUSH_EVERY, TrainLog


class Told:
    def __init__(self):
        self.events = []

    def begin(self, step, num_steps):
        self.events.append(("begin", step, num_steps))

    def stepped(self, step, metrics):
        self.events.append(("step", step, metrics))

    def evaluated(self, step, metrics):
        self.events.append(("evaluated", step, metrics))

    def end(self):
        self.events.append(("end",))


def metrics(loss=1.0):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(0.5), "tokens": jnp.int32(7)}


def row_ids(step):
    return [f"row {step}-{number}" for number in range(10)]


@pytest.fixture
def log(tmp_path):
    return TrainLog(tmp_path / "log.jsonl", [], row_ids)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_steps_are_written_a_few_at_a_time_and_listeners_hear_each(tmp_path):
    told = Told()
    log = TrainLog(tmp_path / "log.jsonl", [told], row_ids).begin(0, 20)
    for step in range(FLUSH_EVERY - 1):
        log.stepped(step, metrics())
    assert told.events == [("begin", 0, 20)]
    log.stepped(FLUSH_EVERY - 1, metrics())
    assert [line["step"] for line in lines(tmp_path)] == list(range(FLUSH_EVERY))
    log.evaluated(FLUSH_EVERY, {"score": 3.0})
    log.close()
    steps = [event for event in told.events if event[0] == "step"]
    assert [event[1] for event in steps] == list(range(FLUSH_EVERY))
    assert steps[0][2]["tokens_per_second"] == pytest.approx(7 / steps[0][2]["seconds"])
    assert told.events[-2:] == [("evaluated", FLUSH_EVERY, {"score": 3.0}), ("end",)]


def test_what_will_be_done_again_is_forgotten_and_a_torn_line_too(tmp_path, log):
    log.begin(0, 20)
    log.evaluated(0, {"score": 1.0})
    for step in range(4):
        log.stepped(step, metrics())
    log.flush()
    log.evaluated(4, {"score": 2.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    again = TrainLog(tmp_path / "log.jsonl", [], row_ids).begin(3, 20, evaluated=[0])
    assert [("evaluation" in line, line["step"]) for line in lines(tmp_path)] == [
        (True, 0),
        *((False, s) for s in range(3)),
    ]
    assert again.tokens == 3 * 7
    assert again.seconds == pytest.approx(sum(line.get("seconds", 0) for line in lines(tmp_path)))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_step_that_diverged_is_named_with_its_rows_and_not_written(tmp_path, log, name):
    log.begin(0, 20)
    log.stepped(0, metrics())
    log.stepped(1, metrics() | {name: jnp.float32("nan")})
    with pytest.raises(UserError, match=r"of step 1 is nan.*row 1-0, row 1-1, .*, row 1-7 and 2 more"):
        log.flush()
    assert [line["step"] for line in lines(tmp_path)] == [0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is Linux's")
def test_a_full_disk_is_a_clear_error():
    log = TrainLog(Path("/dev/full"), [], row_ids)
    log.stepped(0, metrics())
    with pytest.raises(UserError, match=r"/dev/full cannot be written \(No space left.*run the same command to go on"):
        log.flush()
