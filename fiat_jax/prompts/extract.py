"""From what a model wrote to its rationale and its answer."""

import functools
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.schema import Section

NUMBER = re.compile(r"(?:(?<![\w.)])[-−])?\d+(?:,\d{3})*(?:\.\d+)?")  # in 5-3 the dash is no sign


@dataclass(frozen=True)
class Reasoning:
    """ŷ_β: the large model's rationale, and its own answer (None where it gave none)."""

    rationale: str
    answer: str | None


Extract = Callable[[str], Reasoning]


def last_number(text: str) -> str | None:
    """Return the last number of `text` in plain ASCII ("1,234.50" is "1234.5", "১১" is "11"), or None."""
    numbers = NUMBER.findall(text)
    return plain_number(numbers[-1]) if numbers else None


def plain_number(text: str) -> str:
    """Return a number's shortest ASCII spelling: no separators, no trailing zeros."""
    digits = "".join(str(int(c)) if c.isdecimal() else c for c in text.replace(",", "").replace("−", "-"))
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    number = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return number if number == "0" else sign + number


def after(text: str, marker: str) -> Reasoning:
    """Cut at the last `marker`: the rationale is what stands before it, the answer the rest of its line."""
    rationale, found, rest = text.rpartition(marker)
    if not found:
        return Reasoning(text.strip(), None)
    lines = rest.strip().splitlines()
    return Reasoning(rationale.strip(), (tidy(lines[0]) or None) if lines else None)


def tidy(answer: str) -> str:
    """Return an answer without the white space, quotes, colon and full stop around it."""
    return answer.strip().lstrip(":").strip().rstrip(".。।").strip("\"'“”").strip().rstrip(".。।")


def last_label(text: str, labels: Collection[str]) -> str | None:
    """Return the label that is mentioned last, as a whole word and in any case; the longest where several overlap."""
    if not labels:
        return None
    ordered = sorted(labels, key=len, reverse=True)
    words = "|".join(f"({re.escape(label)})" for label in ordered)
    # by group, for folded strings differ where the pattern matches: İ is no i, nor I an ı
    found = [one.lastindex for one in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE)]
    return ordered[(found[-1] or 1) - 1] if found else None


def make_extract(section: Section, labels: Collection[str]) -> Extract:
    """Return the extractor that an instruction file declares.

    Kinds: `after` (needs `text`), `last_number`, `label` (the last one of the file's labels that is mentioned), and
    `regex` (needs `pattern` with a group `answer`, and `rationale` if it likes; searched in the whole completion).
    """
    kind = section.text("kind")
    if kind == "after":
        extract = functools.partial(after, marker=section.text("text"))
    elif kind == "last_number":
        extract = _last_number
    elif kind == "label":
        if not labels:
            raise UserError(f"{section.where}: kind 'label' needs the file's labels; add them")
        extract = functools.partial(_last_label, labels=labels)
    elif kind == "regex":
        extract = _regex(section.text("pattern"), section.where)
    else:
        raise UserError(f"{section.where}: unknown kind {kind!r}; known are after, last_number, label, regex")
    section.done()
    return extract


def _last_number(text: str) -> Reasoning:
    return Reasoning(text.strip(), last_number(text))


def _last_label(text: str, labels: Collection[str]) -> Reasoning:
    return Reasoning(text.strip(), last_label(text, labels))


def _regex(source: str, where: str) -> Extract:
    try:
        pattern = re.compile(source, re.DOTALL)
    except re.error as error:
        raise UserError(f"{where}: pattern {source!r} is no regular expression: {error}") from None
    if "answer" not in pattern.groupindex:
        raise UserError(f"{where}: pattern {source!r} needs a group named answer: (?P<answer>...)")

    def extract(text: str) -> Reasoning:
        match = pattern.search(text)
        if match is None:
            return Reasoning(text.strip(), None)
        groups = match.groupdict()
        rationale = groups.get("rationale") if "rationale" in groups else text[: match.start("answer")]
        return Reasoning((rationale or "").strip(), tidy(groups["answer"] or "") or None)

    return extract
