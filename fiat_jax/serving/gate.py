"""Who is let in: so many sequences at once, none before the models are there, none while the server drains."""

import asyncio
from typing import Literal

from fiat_jax.serving.errors import ApiError


class Gate:
    """Counts sequences from the moment they are let in until the engine is done with them; used in one event loop."""

    def __init__(self, most: int):
        self.most, self.inside = most, 0
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, count: int) -> None:
        """Let so many sequences in, all or none.

        Raises:
            ApiError: 503 while starting or draining, 429 where there is no room, 400 where there never is.
        """
        if count and self.state != "ready":
            raise ApiError(503, f"the server is {self.state}", retry_after=5)
        if count > self.most:
            raise ApiError(400, f"{count} completions are asked for at once; this server takes {self.most}")
        if self.inside + count > self.most:
            raise ApiError(429, f"{self.inside} sequences are under way or wait; ask again later", retry_after=1)
        self.inside += count
        self._empty.clear()

    def leave(self, count: int) -> None:
        """Count sequences out again."""
        self.inside -= count
        if not self.inside:
            self._empty.set()

    async def drain(self, seconds: float) -> bool:
        """Let nobody in any more, and wait until all are out; False where some are not after so many seconds."""
        self.state = "draining"
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True
