"""The ways of using θ_β and θ_τ that are compared: one line of code with parts switched off."""

import dataclasses

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.render import ReasoningUse


@dataclasses.dataclass(frozen=True)
class Paradigm:
    """What θ_τ reads, and what of it is trained.

    Args:
        reasoning_use: which part of ŷ_β it reads: full, answer, rationale or none.
        use_instructions: whether it reads I_τ.
        lora: adapters are trained; else all weights.
        trained: False: θ_τ is not used, the answer is θ_β's own.
        shuffled: it reads another row's ŷ_β.
    """

    name: str
    reasoning_use: ReasoningUse = "full"
    use_instructions: bool = True
    lora: bool = True
    trained: bool = True
    shuffled: bool = False

    @property
    def needs_reasoning(self) -> bool:
        """Whether rows must have a ŷ_β."""
        return not self.trained or self.reasoning_use != "none"


PARADIGMS = {
    paradigm.name: paradigm
    for paradigm in (
        Paradigm("icl", trained=False),
        Paradigm("finetune", reasoning_use="none", use_instructions=False, lora=False),
        Paradigm("finetune-lora", reasoning_use="none", use_instructions=False),
        Paradigm("fiat-no-reasoning", reasoning_use="none"),
        Paradigm("fiat"),
        Paradigm("fiat-full", lora=False),
        Paradigm("fiat-answer-only", reasoning_use="answer"),
        Paradigm("fiat-rationale-only", reasoning_use="rationale"),
        Paradigm("fiat-shuffled", shuffled=True),
    )
}


def find_paradigm(name: str) -> Paradigm:
    """Return a paradigm by name."""
    if name not in PARADIGMS:
        hint = did_you_mean(name, PARADIGMS)
        raise UserError(f"unknown paradigm {name!r}; known are {', '.join(PARADIGMS)}.{hint}")
    return PARADIGMS[name]
