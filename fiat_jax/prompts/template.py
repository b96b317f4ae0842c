"""Templates: literal text with {slots}."""

import string
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fiat_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Part:
    """A literal (slot is None) or a slot (text is empty)."""

    text: str
    slot: str | None = None


@dataclass(frozen=True)
class Template:
    """The parts of a template in their order."""

    parts: tuple[Part, ...]

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(part.slot for part in self.parts if part.slot is not None)

    @property
    def source(self) -> str:
        """The template as it is written in the file."""
        return self.fill(lambda slot: f"{{{slot}}}")

    def fill(self, value: Callable[[str], str]) -> str:
        """Return the text with each slot replaced by `value(slot)`."""
        return "".join(part.text if part.slot is None else value(part.slot) for part in self.parts)

    def cut(self, slot: str) -> tuple["Template", "Template"]:
        """Return what stands before the first `slot`, and the slot with all that follows."""
        index = [part.slot for part in self.parts].index(slot)
        return Template(self.parts[:index]), Template(self.parts[index:])


def parse_template(text: str, known: Collection[str], where: str) -> Template:
    """Parse `text`, without its blank first and last lines; braces meant as text are doubled.

    Raises:
        UserError: an unknown slot (near matches are named), unbalanced braces, or a slot that is not a plain name.
    """
    parts: list[Part] = []
    try:
        parsed = list(string.Formatter().parse(text.strip("\n")))
    except ValueError as error:
        raise UserError(f"{where}: {error}; write {{{{ and }}}} for braces that are text") from None
    for literal, slot, spec, conversion in parsed:
        if literal and parts and parts[-1].slot is None:  # a doubled brace ends a piece
            parts[-1] = Part(parts[-1].text + literal)
        elif literal:
            parts.append(Part(literal))
        if slot is None:
            continue
        if slot not in known or spec or conversion:
            names = ", ".join(f"{{{name}}}" for name in known)
            hint = did_you_mean(slot, known)
            raise UserError(f"{where}: unknown slot {{{slot}}}; slots here are {names}.{hint} Text braces are doubled.")
        parts.append(Part("", slot))
    return Template(tuple(parts))
