"""The shapes of an engine."""

import dataclasses

from fiat_jax.errors import UserError
from fiat_jax.inference.scheduler import Order


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """The shapes that an engine compiles, once.

    Args:
        slots: sequences at once.
        slot_length: own tokens of a sequence, its prompt's and its new ones.
        prefix_length: the longest shared prefix; 0: there are none.
        block: tokens that are decoded between two looks at who is done and who waits.
        short_block: the same while slots are free, so that whoever comes waits less; 0: as many.
        prefill_rows: prompts that are read at once.
        shortest_bucket: prompts are padded to this length or to a power of two times it.
        stops, stop_length: stop sequences a request, and tokens in each, at most.
        alternatives: of how many of the likeliest tokens a request may ask for the log-probabilities.
        score: whether given texts are scored as well (`Engine.score` and `Engine.rank`).
        order: "longest" first, for bulk work, or "arrival".
    """

    slots: int = 64
    slot_length: int = 512
    prefix_length: int = 0
    block: int = 16
    short_block: int = 0
    prefill_rows: int = 8
    shortest_bucket: int = 32
    stops: int = 4
    stop_length: int = 16
    alternatives: int = 0
    score: bool = False
    order: Order = "longest"

    def __post_init__(self):
        for name in ("slots", "slot_length", "block", "prefill_rows", "shortest_bucket", "stops", "stop_length"):
            if getattr(self, name) < 1:
                raise UserError(f"EngineConfig.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.short_block <= self.block:
            raise UserError(f"EngineConfig.short_block is {self.short_block}; it must be 0 to block, {self.block}")
        if self.alternatives < 0:
            raise UserError(f"EngineConfig.alternatives is {self.alternatives}; it must be 0 or more")

    def divided(self, ways: int) -> "EngineConfig":
        """Return the same with as many slots and rows, or a few more, as so many devices divide."""
        rounded = {name: -(-getattr(self, name) // ways) * ways for name in ("slots", "prefill_rows")}
        return dataclasses.replace(self, **rounded)

    @property
    def buckets(self) -> list[int]:
        """The lengths to which prompts are padded."""
        doubled = [self.shortest_bucket << n for n in range(32) if self.shortest_bucket << n < self.slot_length]
        return [*doubled, self.slot_length]

    @property
    def text_buckets(self) -> list[int]:
        """The lengths to which whole texts are padded: those of prompts, and of the longest behind a prefix."""
        return self.buckets + [self.prefix_length + self.slot_length] * (self.prefix_length > 0)
