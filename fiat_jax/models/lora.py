"""Which linear layers carry an adapter, of which rank and scale: peft's rules, resolved before anything is built."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.linear import EMBEDDING, LoraSlot

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapter of a model, in peft's terms.

    Args:
        rank: r, the inner dimension of the adapter.
        alpha: α; the adapter's output is scaled by α/r, or by α/√r with `rslora`.
        targets: "all-linear"; another string is a regular expression that must match a module's whole path; a sequence
            holds module paths or their dotted ends. The embedding ("embed_tokens") is not linear: name it.
        dropout: the share of an adapted layer's inputs that its adapter does not see in training.
        rank_pattern, alpha_pattern: regular expression for a module's path, or its dotted end → its own r or α.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        ranks = [self.rank, *self.rank_pattern.values()]
        if any(not isinstance(rank, int) or rank < 1 for rank in ranks):
            raise UserError(f"a LoRA rank is a positive whole number; got {ranks}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout is a share of at least 0 and less than 1; got {self.dropout}")
        if not self.targets:
            raise UserError(f"LoRA has no targets; name layers, or say {ALL_LINEAR!r}")
        for pattern in (
            *([self.targets] if isinstance(self.targets, str) else []),
            *self.rank_pattern,
            *self.alpha_pattern,
        ):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"LoRA pattern {pattern!r} is not a regular expression: {error}") from None


def resolve(config: LoraConfig, modules: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, LoraSlot], ...]:
    """Return the slot of every adapted stack of layers, by our name of the stack.

    `modules` maps our name of a stack to the Hugging Face paths of its layers, in order.
    """
    if isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR:
        modules = {name: stack for name, stack in modules.items() if name != EMBEDDING}
    paths = [path for stack in modules.values() for path in stack]
    targets = (config.targets,) if isinstance(config.targets, str) else tuple(config.targets)
    unmatched = [t for t in targets if not any(_is_target(config.targets, t, path) for path in paths)]
    if unmatched:
        whole = " A string is a regular expression for a layer's whole path; put names in a list."
        raise _no_match("lora targets", unmatched, paths, whole if isinstance(config.targets, str) else "")
    for field, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        unmatched = [key for key in pattern if not any(_matches(key, path) for path in paths)]
        if unmatched:
            raise _no_match(f"lora {field}", unmatched, paths)

    slots = []
    for name, stack in modules.items():
        ranks, scales = [], []
        for path in stack:
            adapted = any(_is_target(config.targets, target, path) for target in targets)
            rank = _pick(config.rank_pattern, path, config.rank)
            alpha = _pick(config.alpha_pattern, path, config.alpha)
            ranks.append(rank if adapted else 0)
            scales.append(alpha / (math.sqrt(rank) if config.rslora else rank) if adapted else 0.0)
        if any(ranks):
            slots.append((name, LoraSlot(tuple(ranks), tuple(scales), config.dropout)))
    return tuple(slots)


def _is_target(targets: str | Iterable[str], target: str, path: str) -> bool:
    if isinstance(targets, str):
        return target.lower() == ALL_LINEAR or re.fullmatch(target, path) is not None
    return path == target or path.endswith(f".{target}")


def _matches(pattern: str, path: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _pick(patterns: Mapping[str, float], path: str, default):
    return next((value for pattern, value in patterns.items() if _matches(pattern, path)), default)


def _no_match(what: str, unmatched: list[str], paths: list[str], remedy: str = "") -> UserError:
    ends = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
    hint = did_you_mean(unmatched[0], ends)
    return UserError(f"{what} {tuple(unmatched)} match no layer; layers are {', '.join(ends)}.{remedy or hint}")
