"""How many requests an endpoint gets at a time: more while it keeps up, half as many when it does not."""

import asyncio
from collections import deque


class Pace:
    """Additive increase, multiplicative decrease, between one request and a ceiling, where it begins.

    The limit grows by one for each round of answers, and is halved by an answer that asks for less (429, 503, none in
    time). What was sent before the last halving does not halve again: it is of the same crowd.
    """

    def __init__(self, ceiling: int):
        self._ceiling, self._limit = ceiling, float(ceiling)
        self._under_way, self._halvings = 0, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    async def begin(self) -> int:
        """Wait for a turn; the number returned goes to `overloaded`. Call `end` when the request has ended."""
        while self._under_way >= self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # the turn may have come, for nobody
                raise
        self._under_way += 1
        return self._halvings

    def end(self) -> None:
        """Leave the turn to others."""
        self._under_way -= 1
        self._wake()

    def succeeded(self) -> None:
        """An answer came."""
        self._limit = min(self._ceiling, self._limit + 1 / self._limit)
        self._wake()

    def overloaded(self, begun: int) -> None:
        """The endpoint asks for less, by its answer to a request that `begin` gave this number."""
        if begun == self._halvings:
            self._limit, self._halvings = max(1.0, self._limit / 2), self._halvings + 1

    def _wake(self) -> None:
        free = self.limit - self._under_way
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was given up
                turn.set_result(None)
                free -= 1
