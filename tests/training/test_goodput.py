"""Where the time of a run went, over all its attempts."""

import os
import signal
import time

import jax
import pytest
from support.tiny_run import tiny_batches

from fiat_jax.errors import Interrupted
from fiat_jax.training.goodput import COMPILATION, Goodput, goodput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def attempt(directory, clock, *, first, last, data=0.0, steps=0.0):
    """One attempt that spends so many seconds on data and on steps."""
    account = Goodput(directory, first, clock)
    with account.spent("data"):
        clock.now += data
    clock.now += steps
    account.write(last, at_once=True)
    account.close()


def test_what_is_spent_on_nothing_else_is_steps(tmp_path):
    attempt(tmp_path, Clock(), first=0, last=10, data=2.0, steps=8.0)
    assert goodput(tmp_path) == {"goodput": 0.8, "wall": 10.0, "attempts": 1, "seconds": {"data": 2.0, "steps": 8.0}}


def test_the_time_between_attempts_and_that_of_steps_done_again_is_not_productive(tmp_path):
    clock = Clock()
    attempt(tmp_path, clock, first=0, last=10, steps=20.0)
    clock.now += 30.0
    attempt(tmp_path, clock, first=5, last=20, steps=30.0)
    found = goodput(tmp_path)
    assert found["seconds"] == {"data": 0.0, "between": 30.0, "lost": 10.0, "steps": 40.0}
    assert (found["wall"], found["goodput"], found["attempts"]) == (80.0, 0.5, 2)


def test_looking_at_a_finished_run_again_is_no_attempt(tmp_path):
    clock = Clock()
    attempt(tmp_path, clock, first=0, last=10, steps=20.0)
    before = goodput(tmp_path)
    clock.now += 1e6
    attempt(tmp_path, clock, first=10, last=10, data=1.0)
    assert goodput(tmp_path) == before


def test_compilation_is_told_apart_from_what_it_is_part_of(tmp_path):
    clock = Clock()
    account = Goodput(tmp_path, 0, clock)
    with account.spent("evaluation"):
        clock.now += 5.0
        jax.monitoring.record_event_duration_secs(COMPILATION, 3.0)
    jax.monitoring.record_event_duration_secs(COMPILATION, 1.0)
    clock.now += 4.0
    account.write(2, at_once=True)
    account.close()
    jax.monitoring.record_event_duration_secs(COMPILATION, 100.0)  # when it is over nothing counts
    assert goodput(tmp_path)["seconds"] == {"compilation": 4.0, "evaluation": 2.0, "steps": 3.0}


def test_a_run_that_was_interrupted_tells_of_both_attempts(run, tmp_path):
    begun = time.time()
    with pytest.raises(Interrupted):
        run(batches=tiny_batches(at_step=lambda now: now == 7 and os.kill(os.getpid(), signal.SIGTERM)))
    time.sleep(0.5)
    done = run()
    found = done.goodput
    assert found["attempts"] == 2
    assert found["seconds"]["between"] >= 0.5
    assert {"compilation", "data", "evaluation", "checkpoint", "steps"} <= found["seconds"].keys()
    assert sum(found["seconds"].values()) == pytest.approx(found["wall"], rel=0.02)
    assert 0 < found["goodput"] < 1
    assert found["wall"] < time.time() - begun + 1
