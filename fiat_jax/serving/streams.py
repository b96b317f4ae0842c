"""Asynchronous streams: many as one, and as an answer that ends when its client goes away."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from fiat_jax.serving.errors import ApiError

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
Flow = AsyncGenerator[T, None]


async def mapped(function: Callable[[S], T], stream: Flow[S]) -> Flow[T]:
    """Yield what a function makes of each, and close the stream in the end."""
    async with contextlib.aclosing(stream):
        async for one in stream:
            yield function(one)


async def merged(streams: Sequence[Flow[T]]) -> Flow[tuple[int, T]]:
    """Yield what any of the streams yields, with its number, as it comes; the first error ends them all."""
    news: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(n: int, stream: Flow[T]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for one in stream:
                    news.put_nowait((n, one))
            news.put_nowait(None)
        except Exception as error:  # raised where it is read
            news.put_nowait(error)

    pumps = [asyncio.create_task(pump(n, stream)) for n, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            one = await news.get()
            if isinstance(one, Exception):
                raise one
            if one is None:
                running -= 1
            else:
                yield one
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collected(stream: Flow[T]) -> list[T]:
    """Return all of a stream."""
    return [one async for one in mapped(lambda one: one, stream)]


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what comes of the work, which is given up when the client goes away.

    Raises:
        ApiError: 499, which nobody reads.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client went away")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events, one a chunk, then [DONE]; what goes wrong on the way is the last chunk."""

    def __init__(self, first: Sequence[dict], rest: Flow[dict]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # so that proxies hand on what they get
        self._rest, self._flow = rest, _events(first, rest)
        super().__init__(self._flow, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send all events, and close the stream however this ends, also before the first of them."""
        async with contextlib.aclosing(self._rest), contextlib.aclosing(self._flow):
            await super().__call__(scope, receive, send)

    @classmethod
    async def begun(cls, request: Request, chunks: Flow[dict]) -> "EventStream":
        """Wait for the first chunk: what goes wrong before it is an answer of its own."""
        try:
            first = await unless_gone(request, collected_first(chunks))
        except BaseException:
            await chunks.aclose()
            raise
        return cls(first, chunks)


async def collected_first(stream: Flow[T]) -> list[T]:
    """Return the first of a stream, if there is one."""
    async for one in stream:
        return [one]
    return []


async def _events(first: Sequence[dict], rest: Flow[dict]) -> Flow[str]:
    for chunk in first:
        yield _event(chunk)
    try:
        async for chunk in rest:
            yield _event(chunk)
    except ApiError as error:
        yield _event(error.body())
    except Exception:
        logger.exception("a stream failed")
        yield _event(ApiError(500, "the server failed; its log says why").body())
    yield "data: [DONE]\n\n"


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
