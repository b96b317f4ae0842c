"""An engine behind a thread: requests from anywhere, each with its own fate."""

import asyncio
import dataclasses
import threading
import time
from concurrent.futures import CancelledError
from itertools import pairwise

import numpy as np
import pytest
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Progress, Request
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


def test_blocks_are_short_while_slots_are_free(one_device):
    model = louder(random_model(TINY, one_device), 8)
    shapes = {"slots": 2, "slot_length": 32, "block": 6, "prefill_rows": 2, "shortest_bucket": 8}
    alone = Request((5, 7), 19, temperature=1.0)
    both = dataclasses.replace(alone, samples=2)
    found = {}
    for short in (0, 2):
        with Worker(Engine(model, -1, EngineConfig(**shapes, short_block=short))) as worker:
            for request in (alone, both):
                told: list[Progress] = []
                completions = worker.submit(request, told.append).result(60)
                sizes = [len(progress.tokens) for progress in told if progress.sample == 0]
                found[short, request.samples] = completions, sizes
    assert found[0, 1] == (found[2, 1][0], [1, 6, 6, 6])
    assert found[2, 1][1] == [1, *[2] * 9]
    assert found[0, 2] == found[2, 2]
    assert found[2, 2][1] == [1, 6, 6, 6]


def test_who_comes_a_moment_later_begins_together_with_the_first(engine, monkeypatch):
    steps, step = [], Engine.step

    def watched(self):
        steps.append(self.load)
        return step(self)

    with Worker(engine) as worker:
        monkeypatch.setattr(Engine, "step", watched)
        worker.submit(Request((5, 7), 2)).result(60)
        steps.clear()
        monkeypatch.setattr(worker._driver, "_step_seconds", 20.0)  # as of a large model
        first = worker.submit(Request((5, 7), 2))
        time.sleep(0.02)
        second = worker.submit(Request((5, 8), 2))
        first.result(60)
        second.result(60)
    assert steps[0] == (0, 2)


def test_one_sample_ends_and_the_others_go_on(worker):
    async def first_ends():
        async with worker.stream(Request((5, 7), 60, samples=2, temperature=1.0)) as news:
            told = {0: 0, 1: 0}
            async for progress in news:
                told[progress.sample] += len(progress.tokens)
                if progress.sample == 0 and progress.finish_reason is None:
                    news.end(0)
                if progress.finish_reason:
                    yield progress.sample, progress.finish_reason, told[progress.sample]

    async def ends():
        return {sample: (reason, count) async for sample, reason, count in first_ends()}

    found = asyncio.run(ends())
    assert found[1] == ("length", 60)
    assert found[0][0] == "cancelled"
    assert found[0][1] < 60


def test_one_that_cannot_be_answered_hears_so_and_the_others_go_on(worker, requests, expected):
    good, bad = worker.submit(requests[0]), worker.submit(Request((3, 99), 4))
    with pytest.raises(UserError, match="holds token 99"):
        bad.result(60)
    assert good.result(60) == expected[0]


def test_a_cancelled_future_frees_its_slots(worker, requests, expected):
    begun = threading.Event()

    long = [worker.submit(Request((5, 7), 590), lambda progress: begun.set()) for _ in range(4)]
    assert begun.wait(60)
    assert all(future.cancel() for future in long)
    assert worker.submit(requests[1]).result(60) == expected[1]
    with pytest.raises(CancelledError):
        long[0].result(1)


def test_what_is_streamed_is_what_is_answered_sample_by_sample(worker, requests, expected):
    async def streamed(request):
        async with worker.stream(request) as news:
            return [progress async for progress in news]

    for request, completions in zip(requests, expected, strict=True):
        news = asyncio.run(streamed(request))
        for sample, completion in enumerate(completions):
            mine = [progress for progress in news if progress.sample == sample]
            assert len(mine) > 1
            assert tuple(token for progress in mine for token in progress.tokens) == completion.tokens
            assert tuple(x for progress in mine for x in progress.log_probs) == completion.log_probs
            assert [progress.finish_reason for progress in mine] == [None] * (len(mine) - 1) + ["length"]


def test_who_stops_listening_frees_the_slots(worker, requests, expected):
    async def a_little():
        async with worker.stream(Request((5, 7), 590, samples=2)) as news:
            async for progress in news:
                return progress

    assert asyncio.run(a_little()).finish_reason is None
    assert worker.submit(requests[0]).result(60) == expected[0]
    assert worker.engine.load == (0, 0)


def test_a_prefix_is_read_between_blocks(worker):
    busy = worker.submit(Request((5, 7), 300))
    key = worker.add_prefix([1, 2, 3]).result(60)
    behind = worker.submit(Request((4, 4), 6, prefix=key)).result(60)
    assert len(busy.result(60)[0].tokens) == 300
    (whole,) = worker.submit(Request((1, 2, 3, 4, 4), 6)).result(60)
    assert behind[0].tokens == whole.tokens
    with pytest.raises(UserError, match="a prefix of 17 tokens"):
        worker.add_prefix([1] * 17).result(60)


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


def test_an_engine_that_fails_in_everything_still_reaches_all_who_wait(engine, monkeypatch):
    worker = Worker(engine)
    under_way = worker.submit(Request((5, 7), 590))
    while not engine.load[0]:
        threading.Event().wait(0.01)

    def fail(*_):
        failing.wait(10)
        raise MemoryError("the device is gone")

    failing = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        patch.setattr(engine, "step", fail)
        patch.setattr(engine, "cancel", fail)
        more = [worker.submit(Request((5, 7), 5)), worker.score([(1, 2)]), worker.add_prefix([1, 2])]
        worker.end(under_way)
        failing.set()
        for future in (under_way, *more):
            with pytest.raises((MemoryError, UserError)):
                future.result(10)
        worker.close()
    for number in range(engine._ids):
        engine.cancel(number)
    list(engine.run())


def test_between_two_blocks_one_call_is_answered_so_that_blocks_go_on(worker, monkeypatch):
    happened, queued, step = [], threading.Event(), worker.engine.step

    def block():
        queued.wait(10)
        happened.append("block")
        return step()

    monkeypatch.setattr(worker.engine, "step", block)
    monkeypatch.setattr(worker.engine, "score", lambda *args, **how: happened.append("call"))
    busy = worker.submit(Request((5, 7), 500))
    calls = [worker.score([(1, 2)]) for _ in range(20)]
    queued.set()
    for call in calls:
        call.result(60)
    busy.cancel()
    assert ("call", "call") not in pairwise(happened)
