"""The ways of using θ_β and θ_τ that are compared: one line of code with parts switched off."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.render import ReasoningUse

PARTS = ("tuning", "reasoning", "instructions", "lora")  # of FIAT, each of which can be taken away
SAMPLES, MANY_SHOT = "samples", "many-shot"  # names in Reasoning.sets


@dataclasses.dataclass(frozen=True)
class Paradigm:
    """Who answers, what it reads and writes, and what of it is trained.

    Args:
        answers: tau: the small model; beta: the large one, whose stored answer is taken.
        reasoning_use: which part of ŷ_β θ_τ reads: full, answer, rationale or none.
        use_instructions: whether θ_τ reads I_τ.
        trained: whether θ_τ is tuned.
        lora: adapters are trained; else all weights.
        shuffled: it reads another row's ŷ_β.
        writes: what θ_τ learns to write: the answer; cot: ŷ_β's rationale and then the answer, which is generated;
            both: the rationale in examples of their own beside those with the answer.
        agreeing: it is trained on the rows alone whose ŷ_β has the right answer.
        dropout: the share of training rows that are read without ŷ_β, others in every epoch; reported with and without.
        of: the name in `Reasoning.sets` of the set that it reads; empty: `Reasoning.set`.
        vote: of several samples of ŷ_β it takes the first one that has the answer of most.
        scores: θ_β ranks the labels by their likelihood after its stored rationale.
    """

    name: str
    answers: Literal["tau", "beta"] = "tau"
    reasoning_use: ReasoningUse = "full"
    use_instructions: bool = True
    trained: bool = True
    lora: bool = True
    shuffled: bool = False
    writes: Literal["answer", "cot", "both"] = "answer"
    agreeing: bool = False
    dropout: float = 0.0
    of: str = ""
    vote: bool = False
    scores: bool = False

    def __post_init__(self):
        if self.answers == "beta" and self.trained:
            raise UserError(f"paradigm {self.name}: θ_β answers it, and is never trained; say 'trained': False")
        if self.writes != "answer" and (self.reasoning_use != "none" or not self.trained):
            raise UserError(
                f"paradigm {self.name}: a model tuned to write reasoning reads none; say 'reasoning_use': 'none'"
            )
        if self.scores and self.answers != "beta":
            raise UserError(f"paradigm {self.name}: 'scores' is of θ_β; θ_τ ranks labels anyway")
        if not 0 <= self.dropout < 1 or (self.dropout and not (self.trained and self.reads_reasoning)):
            raise UserError(
                f"paradigm {self.name}: 'dropout' is {self.dropout}; it is a share from 0 to 1 of the rows that a "
                "tuned model reads without their reasoning"
            )

    @property
    def reads_reasoning(self) -> bool:
        """Whether an answer needs the row's ŷ_β."""
        return self.answers == "beta" or self.reasoning_use != "none"

    @property
    def needs_reasoning(self) -> bool:
        """Whether rows must have a ŷ_β, to be read or to be learnt."""
        return self.reads_reasoning or self.writes != "answer" or self.agreeing

    @property
    def removed(self) -> tuple[str, ...]:
        """Which parts of FIAT are taken away; nothing of what is no such variant."""
        if self.answers == "beta" or self.writes != "answer":
            return ()
        there = (self.trained, self.reasoning_use != "none", self.use_instructions, self.lora or not self.trained)
        return tuple(part for part, has in zip(PARTS, there, strict=True) if not has)


_NOTHING_READ: Mapping[str, Any] = {"reasoning_use": "none", "use_instructions": False}

PARADIGMS = {
    paradigm.name: paradigm
    for paradigm in (
        Paradigm("icl", answers="beta", trained=False),
        Paradigm("icl-vote", answers="beta", trained=False, of=SAMPLES, vote=True),
        Paradigm("icl-scores", answers="beta", trained=False, scores=True),
        Paradigm("icl-many-shot", answers="beta", trained=False, of=MANY_SHOT),
        Paradigm("zero-shot", trained=False, reasoning_use="none"),
        Paradigm("finetune", lora=False, **_NOTHING_READ),
        Paradigm("finetune-lora", **_NOTHING_READ),
        Paradigm("finetune-cot", writes="cot", agreeing=True, **_NOTHING_READ),
        Paradigm("distilled", writes="both", **_NOTHING_READ),
        Paradigm("fiat-no-reasoning", reasoning_use="none"),
        Paradigm("fiat"),
        Paradigm("fiat-no-instructions", use_instructions=False),
        Paradigm("fiat-no-tuning", trained=False),
        Paradigm("fiat-full", lora=False),
        Paradigm("fiat-dropout", dropout=0.5),
        Paradigm("fiat-answer-only", reasoning_use="answer"),
        Paradigm("fiat-rationale-only", reasoning_use="rationale"),
        Paradigm("fiat-shuffled", shuffled=True),
    )
}

GROUPS = {
    "ladder": ("fiat", "fiat-no-reasoning", "finetune-lora", "finetune"),  # Table 3: each lacks what the last one does
    "leave-one-out": ("fiat", "fiat-no-tuning", "fiat-no-reasoning", "fiat-no-instructions", "fiat-full"),
    "controls": ("fiat", "fiat-answer-only", "fiat-rationale-only", "fiat-shuffled"),
}


def find_paradigm(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Paradigm:
    """Return a paradigm by name: one of the user's own (`Run.own`), or one that is known.

    One of the user's own is what it is `like` ('fiat' by default), with the fields that it names changed.
    """
    if own and name in own:
        return _own_paradigm(name, own)
    known = {**PARADIGMS, **(own or {})}
    if name not in known:
        raise UserError(f"unknown paradigm {name!r}; known are {', '.join(known)}.{did_you_mean(name, known)}")
    return PARADIGMS[name]


def find_paradigms(names: Iterable[str], own: Mapping[str, Mapping[str, Any]] | None = None) -> list[Paradigm]:
    """Return paradigms by name, each once; the name of a group (`GROUPS`) stands for its paradigms."""
    named = [one for name in names for one in GROUPS.get(name, (name,))]
    return [find_paradigm(name, own) for name in dict.fromkeys(named)]


def roles(paradigms: Iterable[Paradigm]) -> dict[str, dict[str, Any]]:
    """Return name → the parts of FIAT that are removed, and the groups of ablations that a paradigm is part of."""
    return {
        one.name: {
            "removed": list(one.removed),
            "groups": [group for group, members in GROUPS.items() if one.name in members],
        }
        for one in paradigms
    }


def _own_paradigm(name: str, own: Mapping[str, Mapping[str, Any]]) -> Paradigm:
    given = dict(own[name])
    like = given.pop("like", "fiat")
    if name in PARADIGMS or name in GROUPS:
        raise UserError(f"Run.own: {name!r} is the name of a known paradigm; give yours another one")
    if like not in PARADIGMS:
        raise UserError(f"Run.own: {name!r} is like {like!r}, which is unknown.{did_you_mean(str(like), PARADIGMS)}")
    fields = {field.name: field for field in dataclasses.fields(Paradigm) if field.name != "name"}
    for key, value in given.items():
        if key not in fields:
            raise UserError(
                f"Run.own: {name!r} has no field {key!r}; fields are {', '.join(fields)}.{did_you_mean(key, fields)}"
            )
        wanted = type(fields[key].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(f"Run.own: {key} of {name!r} is {value!r}; it must be of type {wanted.__name__}")
        choices = getattr(fields[key].type, "__args__", ())
        if choices and value not in choices:
            raise UserError(f"Run.own: {key} of {name!r} is {value!r}; known are {', '.join(map(str, choices))}")
    return dataclasses.replace(PARADIGMS[like], name=name, **given)
