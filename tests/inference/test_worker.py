"""An engine behind a thread: requests from anywhere, each with its own fate."""

import itertools
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.inference.worker import Worker
from fiat_jax.models.model import random_model

CONFIG = EngineConfig(slots=2, slot_length=600, prefix_length=16, block=4, prefill_rows=2, shortest_bucket=64)


@pytest.fixture(scope="module")
def engine(one_device):
    return Engine(louder(random_model(TINY, one_device), 8), -1, CONFIG)


@pytest.fixture
def worker(engine):
    with Worker(engine) as worker:
        yield worker


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 61, n + 2).tolist()) for n in range(9)]
    return [Request(ids, 9, samples=1 + n % 2, temperature=1.0, seed=n) for n, ids in enumerate(prompts)]


@pytest.fixture(scope="module")
def expected(engine, requests):
    return engine.generate(requests)


def test_requests_from_many_threads_get_the_answers_that_they_get_alone(worker, requests, expected):
    found = {}

    def ask(n):
        found[n] = worker.submit(requests[n]).result(60)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(requests))] == expected


def test_one_that_cannot_be_answered_hears_so_and_the_others_go_on(worker, requests, expected):
    good, bad = worker.submit(requests[0]), worker.submit(Request((3, 99), 4))
    with pytest.raises(UserError, match="holds token 99"):
        bad.result(60)
    assert good.result(60) == expected[0]


def test_a_cancelled_future_frees_its_slots(worker, requests, expected):
    begun = threading.Event()

    def watch(sample, tokens):
        begun.set()
        return True

    long = [worker.submit(Request((5, 7), 590), watch) for _ in range(4)]
    assert begun.wait(60)
    assert all(future.cancel() for future in long)
    assert worker.submit(requests[1]).result(60) == expected[1]
    with pytest.raises(CancelledError):
        long[0].result(1)


def test_a_watch_sees_the_tokens_grow_and_ends_a_request(worker, requests):
    seen = []

    def watch(sample, tokens):
        seen.append(list(tokens))
        return len(tokens) < 20

    (found,) = worker.submit(Request((5, 7), 500), watch).result(60)
    assert found.finish_reason == "cancelled"
    assert 20 <= len(found.tokens) < 60
    assert all(b[: len(a)] == a for a, b in itertools.pairwise(seen))
    assert len(seen) > 2


def test_a_prefix_is_read_between_blocks(worker):
    busy = worker.submit(Request((5, 7), 300))
    key = worker.add_prefix([1, 2, 3])
    behind = worker.submit(Request((4, 4), 6, prefix=key)).result(60)
    assert len(busy.result(60)[0].tokens) == 300
    (whole,) = worker.submit(Request((1, 2, 3, 4, 4), 6)).result(60)
    assert behind[0].tokens == whole.tokens
    with pytest.raises(UserError, match="a prefix of 17 tokens"):
        worker.add_prefix([1] * 17)


def test_who_waits_when_the_engine_is_closed_or_fails_hears_of_it(engine):
    worker = Worker(engine)
    waiting = worker.submit(Request((5, 7), 590))
    worker.close()
    with pytest.raises(UserError, match="closed before this request"):
        waiting.result(60)
    with pytest.raises(UserError, match="the engine is closed"):
        worker.submit(Request((5, 7), 5))


def test_a_failure_of_the_engine_reaches_all_who_wait(engine, monkeypatch):
    worker = Worker(engine)
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with pytest.raises(ZeroDivisionError):
        worker.submit(Request((5, 7), 5)).result(60)
    with pytest.raises(UserError, match="the engine is closed"):
        worker.submit(Request((5, 7), 5))
