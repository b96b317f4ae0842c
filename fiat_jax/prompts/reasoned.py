"""A model that writes its reasoning itself: in the words in which the instruction file shows it ŷ_β."""

from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.instructions import Instructions
from fiat_jax.prompts.spaces import Pieces


@dataclass(frozen=True)
class Words:
    """What the file's variants say: `before` {rationale}, `between` it and {answer}, and at the `end` of `full`."""

    before: str
    between: str
    end: str

    @classmethod
    def of(cls, instructions: Instructions) -> "Words":
        """Read the variants `full` and `rationale`.

        Raises:
            UserError: the file has no such variants, or `full` shows the answer first.
        """
        variants, where = instructions.answer_side.reasoning, f"{instructions.source}: answer.reasoning"
        if not variants:
            raise UserError(
                f"{where} is missing; it says in what words a rationale is shown, and a model that writes its own "
                "reasoning writes it in these words"
            )
        full, rationale = variants["full"].parts, variants["rationale"].parts
        shown, answered = ([part.slot for part in full].index(slot) for slot in ("rationale", "answer"))
        if answered < shown:
            raise UserError(
                f"{where}.full shows {{answer}} before {{rationale}}, and a model would write its answer before its "
                "reasoning; put the rationale first"
            )
        at = [part.slot for part in rationale].index("rationale")
        texts = (rationale[:at], full[shown + 1 : answered], full[answered + 1 :])
        return cls(*("".join(part.text for part in parts) for parts in texts))

    def asked(self, pieces: Pieces) -> Pieces:
        """Return what is read before an answer with its last line, which asks for it, asking for the reasoning."""
        *rest, (kind, last) = pieces
        if kind != "literal":
            rest, last = [*rest, (kind, last)], ""
        return [*rest, ("literal", (last[: last.rfind("\n") + 1] or "\n") + self.before)]

    def written(self, rationale: str, answer: str | None) -> Pieces:
        """Return what is learnt: the rationale, and an answer with what leads to it."""
        if answer is None:
            return [("written", rationale)]
        return [("written", rationale), ("literal", self.between), ("answer", answer), ("literal", self.end)]

    def answer_in(self, completion: str) -> str:
        """Return the answer that a completion ends with; nothing where its reasoning leads to none."""
        marker = self.between.strip()
        _, found, rest = completion.rpartition(marker) if marker else ("", "all of it", completion)
        return rest.strip().removesuffix(self.end.strip()) if found else ""
