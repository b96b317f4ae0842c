"""What is asked of the engine, and what it answers: plain values, no arrays."""

import dataclasses
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to go on with.

    Args:
        tokens: the request's own token ids, behind the prefix if there is one.
        max_new_tokens: how many new ones there are at most, of each sample.
        prefix: the key of a prefix that the engine was told of; "": none.
        samples: how many completions, each with random numbers of its own.
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_k, top_p: sample among the k likeliest tokens (0: all), and the fewest that hold a share p together.
        seed: of the random numbers: token t of sample s depends on (seed, s, t) and on the text alone.
        stop: token sequences that end a completion, besides the engine's end token; they are not part of it.
        deadline: seconds from now after which the request is given up; None: never.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    prefix: str = ""
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[tuple[int, ...], ...] = ()
    deadline: float | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample's new tokens with the log-probability of each, and why they end.

    Log-probabilities are of the model's own distribution, before temperature and cuts. Those of an end or of stop
    tokens are not among them.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
