"""From the text that the tuned model generates to its answer; None where there is none."""

from collections.abc import Callable, Mapping

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.extract import last_label, last_number

# (completion, what the model may say → the label it stands for) → the answer
Extractor = Callable[[str, Mapping[str, str]], str | None]


def strip(completion: str, labels: Mapping[str, str]) -> str | None:
    """Return the text without the white space around it."""
    return completion.strip() or None


def first_line(completion: str, labels: Mapping[str, str]) -> str | None:
    """Return the first line that is not empty: a model that does not stop writes its next question below."""
    return completion.strip().split("\n", 1)[0].strip() or None


def number(completion: str, labels: Mapping[str, str]) -> str | None:
    """Return the last number in plain ASCII."""
    return last_number(completion)


def label(completion: str, labels: Mapping[str, str]) -> str | None:
    """Return the label whose words the first line mentions last, whole words in any case."""
    words = last_label(first_line(completion, labels) or "", labels)
    return None if words is None else labels[words]


EXTRACTORS: dict[str, Extractor] = {"strip": strip, "first_line": first_line, "last_number": number, "label": label}
_OF_KIND = {"label": "label", "choice": "label", "number": "last_number", "text": "first_line"}


def find_extractor(name: str) -> Extractor:
    """Return an extractor by its name, or by the kind of task whose answers it finds."""
    name = _OF_KIND.get(name, name)
    if name not in EXTRACTORS:
        hint = did_you_mean(name, EXTRACTORS)
        raise UserError(f"answer extractor {name!r} is unknown; extractors are {', '.join(EXTRACTORS)}.{hint}")
    return EXTRACTORS[name]
