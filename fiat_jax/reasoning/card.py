"""What a whole set holds, in figures: the same for the same records, whoever wrote them and when."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fiat_jax.prompts.extract import Reasoning
from fiat_jax.reasoning.cost import Prices
from fiat_jax.reasoning.join import majority
from fiat_jax.store import Record


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is kept of a record: no text."""

    answer: str | None
    finish_reason: str
    served_by: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    hidden_tokens: int | None


@dataclass(frozen=True)
class Tally:
    """The records of a set by (row, sample), without their texts."""

    found: Mapping[tuple[str, int], _Counts]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Tally":
        """Return the tally of records; of those of one key the last counts."""
        names = _Counts.__dataclass_fields__
        return cls({one.key: _Counts(**{name: _shared(getattr(one, name)) for name in names}) for one in records})

    def answers(self, vote: bool) -> dict[str, str | None]:
        """Return θ_β's answer to each row as a reader takes it: the first sample's, or that of most."""
        if not vote:
            return {row: one.answer for (row, sample), one in self.found.items() if sample == 0}
        voices: dict[str, list[Reasoning]] = {}
        for row, sample in sorted(self.found):
            voices.setdefault(row, []).append(Reasoning("", self.found[row, sample].answer))
        return {row: majority(samples).answer for row, samples in voices.items()}

    def figures(self, prices: Prices | None) -> dict[str, Any]:
        """Return counts, lengths, shares and cost."""
        records, samples = list(self.found.values()), Counter(row for row, _ in self.found)
        return {
            "rows": len(samples),
            "records": len(records),
            "samples_a_row": _sorted(Counter(samples.values())),
            "finish_reasons": _sorted(Counter(one.finish_reason for one in records)),
            "served_by": _sorted(Counter(one.served_by for one in records if one.served_by)),
            "cut_short": _share(one.finish_reason == "length" for one in records),
            "without_an_answer": _share(one.answer is None for one in records),
            "with_hidden_reasoning": _share(bool(one.hidden_tokens) for one in records),
            "prompt_tokens": _lengths([one.prompt_tokens for one in records]),
            "answer_tokens": _lengths([one.completion_tokens for one in records]),
            "cached_tokens": sum(one.cached_tokens or 0 for one in records),
            "cost": None if prices is None else round(sum(_cost(prices, one) for one in records), 6),
        }


def _shared(value: Any) -> Any:
    return sys.intern(value) if isinstance(value, str) else value  # few words, many records


def _cost(prices: Prices, one: _Counts) -> float:
    return prices.of(one.prompt_tokens or 0, one.completion_tokens or 0, one.cached_tokens or 0)


def _sorted(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(name): counts[name] for name in sorted(counts)}


def _share(flags: Iterable[bool]) -> dict[str, float]:
    counted = list(flags)
    return {"records": sum(counted), "share": round(sum(counted) / max(len(counted), 1), 6)}


def _lengths(numbers: Sequence[int | None]) -> dict[str, int] | None:
    """Return quantiles of what is known (the nearest rank), None where nothing is."""
    known = sorted(number for number in numbers if number is not None)
    if not known:
        return None

    def quantile(share: float) -> int:
        return known[max(math.ceil(share * len(known)) - 1, 0)]

    return {
        "known": len(known), "sum": sum(known), "min": known[0], "median": quantile(0.5), "p95": quantile(0.95),
        "max": known[-1],
    }  # fmt: skip
