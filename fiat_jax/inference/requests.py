"""What is asked of the engine, and what it answers: plain values, no arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to go on with.

    Args:
        tokens: the request's own token ids, behind the prefix if there is one.
        max_new_tokens: how many new ones there are at most, of each sample.
        prefix: the key of a prefix that the engine was told of; "": none.
        adapter: the name of an adapter that the engine was told of; "": the model's own.
        samples: how many completions, each with random numbers of its own.
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_k, top_p: sample among the k likeliest tokens (0: all), and the fewest that hold a share p together.
        seed: of the random numbers: token t of sample s depends on (seed, s, t) and on the text alone.
        stop: token sequences that end a completion, besides the engine's end token; they are not part of it.
        alternatives: how many of the likeliest tokens are told in each place; `EngineConfig.alternatives` at most.
        deadline: seconds from now after which the request is given up; None: never.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    prefix: str = ""
    adapter: str = ""
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[tuple[int, ...], ...] = ()
    alternatives: int = 0
    deadline: float | None = None

    @property
    def group(self) -> tuple[str, str]:
        """What requests that run together have in common: adapter and prefix."""
        return self.adapter, self.prefix


@dataclasses.dataclass(frozen=True)
class End:
    """The engine's end token where it was written: its log-probability, and the likeliest tokens in its place."""

    token: int
    log_prob: float
    alternatives: tuple[dict[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Progress:
    """Tokens of a sample with their log-probabilities; `finish_reason` where none will follow, `end` where it says so.

    The end token is not among the tokens.
    """

    sample: int
    tokens: Sequence[int]
    log_probs: Sequence[float]
    alternatives: Sequence[dict[int, float]]
    finish_reason: FinishReason | None
    end: End | None = None

    def after(self, count: int) -> "Progress":
        """Return those behind the first `count`."""
        more = tuple(self.tokens[count:]), tuple(self.log_probs[count:]), tuple(self.alternatives[count:])
        return Progress(self.sample, *more, self.finish_reason, self.end)


@dataclasses.dataclass(frozen=True)
class TextScore:
    """Log-probabilities of a text's tokens but its first, and the likeliest tokens in their places with theirs."""

    log_probs: tuple[float, ...]
    alternatives: tuple[dict[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample's new tokens with the log-probability of each, and why they end.

    Log-probabilities are of the model's own distribution, before temperature and cuts. Those of an end or of stop
    tokens are not among them. `alternatives` are the likeliest tokens in each place with theirs, if they were wanted.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    alternatives: tuple[dict[int, float], ...] = ()
