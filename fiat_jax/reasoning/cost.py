"""What requests cost, and a limit that none of them may pass."""

import asyncio
from dataclasses import dataclass

from fiat_jax.reasoning.backend import Completion

MILLION = 1e6


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens: of prompts, of answers, and of prompts that the endpoint had read before."""

    prompt: float
    completion: float
    cached: float

    def of(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Return what so many tokens cost; `cached_tokens` are among `prompt_tokens`."""
        fresh = prompt_tokens - cached_tokens
        total = fresh * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion
        return total / MILLION


def money(amount: float) -> str:
    """Return an amount as it is shown to people."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


class Purse:
    """Counts money; with a limit, a request begins only where that cannot be passed, whatever those under way cost.

    A request may cost its prompt, counted before it is sent, and the most tokens that it may be answered with. Where an
    endpoint counts more tokens in a prompt than we do, later prompts are taken to have as many more.
    """

    def __init__(self, prices: Prices | None, limit: float | None = None):
        self._prices, self._limit = prices or Prices(0.0, 0.0, 0.0), limit
        self._held, self._under_way, self._scale = 0.0, 0, 1.0
        self._changed = asyncio.Event()
        self.spent = 0.0

    def worst(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the most that a request may cost."""
        return self._prices.of(round(prompt_tokens * self._scale), completion_tokens)

    async def reserve(self, worst: float) -> bool:
        """Wait until a request may begin; False where it may not even when all that are under way have ended."""

        while self._limit is not None and self.spent + self._held + worst > self._limit:
            if not self._under_way:
                return False
            await self._changed.wait()
        self._held, self._under_way = self._held + worst, self._under_way + 1
        return True

    def settle(self, worst: float, counted: int, completion: Completion | None) -> float:
        """Return and book what a request cost: nothing where no answer came, the worst where it is not said."""
        cost = 0.0
        if completion is not None:
            cost = worst
            if completion.prompt_tokens is not None and completion.completion_tokens is not None:
                read, cached = completion.prompt_tokens, completion.cached_tokens or 0
                cost = self._prices.of(read, completion.completion_tokens, cached)
                self._scale = max(self._scale, read / max(counted, 1))
        self._held, self._under_way = self._held - worst, self._under_way - 1
        self.spent += cost
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return cost
