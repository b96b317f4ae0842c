"""Streams that are given up at the worst of moments."""

import asyncio
import types
from concurrent.futures import Future

import pytest

from fiat_jax.inference.requests import Progress
from fiat_jax.inference.worker import Stream
from fiat_jax.serving.config import Serve
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.streams import EventStream
from fiat_jax.serving.text import Ask, TextModel


class Pushed:
    """In the place of an engine's worker: tokens come when a test says so."""

    engine = types.SimpleNamespace(load=(0, 0))

    def submit(self, request, watch):
        self.tell, self.future = watch, Future()
        return self.future

    def stream(self, request):
        return Stream(self, request)


@pytest.fixture
def model():
    tokenizer = types.SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    gate = Gate(4)
    gate.state = "ready"
    return TextModel("m", Pushed(), tokenizer, Serve(request_seconds=5), gate)  # pyright: ignore


def progress(text):
    return Progress(0, tuple(map(ord, text)), (0.0,) * len(text), (), None)


@pytest.mark.parametrize("turns", range(6))
def test_who_is_given_up_just_when_tokens_come_is_given_up(model, turns):
    asyncio.run(given_up(model, turns))


async def given_up(model, turns):
    """Cancel so many turns of the loop after a token has come."""

    async def listen():
        async for _ in model.stream(Ask((1,), 9)):
            pass

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.01)
    model.worker.tell(progress("a"))
    for _ in range(turns):
        await asyncio.sleep(0)
    listening.cancel()
    done, _ = await asyncio.wait({listening}, timeout=2)
    assert done
    assert listening.cancelled()
    await asyncio.sleep(0.01)
    assert model.worker.future.cancelled()
    assert model._gate.inside == 0


def test_a_request_that_takes_too_long_is_told_so_and_leaves(model):
    object.__setattr__(model._serve, "request_seconds", 0.05)

    async def life():
        with pytest.raises(ApiError, match="not answered within") as late:
            async for _ in model.stream(Ask((1,), 9)):
                pass
        assert late.value.status == 504
        await asyncio.sleep(0.01)
        assert model._gate.inside == 0

    asyncio.run(life())


def test_a_stream_whose_client_left_before_its_first_event_is_closed():
    closed = []

    async def chunks():
        try:
            yield {"n": 1}
            yield {"n": 2}
        finally:
            closed.append(True)

    async def gone():
        return {"type": "http.disconnect"}

    async def never(message):
        await asyncio.sleep(60)

    async def life():
        kept = chunks()
        first = [await anext(kept)]
        stream = EventStream(first, kept)
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, never)
        assert closed

    asyncio.run(life())


def test_what_fails_in_the_middle_of_a_stream_is_its_last_event_but_one():
    async def chunks():
        yield {"n": 2}
        raise MemoryError("the device is gone")

    sent = []

    async def send(message):
        sent.append(message.get("body", b"").decode())

    async def stay():
        await asyncio.sleep(60)

    async def life():
        stream = EventStream([{"n": 1}], chunks())
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, stay, send)

    asyncio.run(life())
    assert [text[:14] for text in sent if text] == [
        'data: {"n": 1}',
        'data: {"n": 2}',
        'data: {"error"',
        "data: [DONE]\n\n",
    ]
    assert "MemoryError" not in "".join(sent)
