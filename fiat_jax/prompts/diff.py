"""What two instruction files tell the models differently, and what each difference costs."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from fiat_jax.prompts.instructions import Instructions


@dataclass(frozen=True)
class PromptDiff:
    """The lines of a unified diff by part of the file; nothing for parts that tell the same.

    `reasoning`: another reasoning set is needed; `answer`: models trained with one file refuse the other.
    """

    parts: dict[str, list[str]]
    reasoning: bool
    answer: bool


def diff(a: Instructions, b: Instructions) -> PromptDiff:
    """Compare two files as the models read them: exemplars written out, comments and order of keys left aside."""
    left, right = dict(_told(a)), dict(_told(b))
    parts = {
        name: list(difflib.unified_diff(left.get(name, []), right.get(name, []), a.source, b.source, lineterm="", n=1))
        for name in {**left, **right}
    }
    hashes = [(one.reasoning_hash if one.reasoning_side else None, one.answer_hash) for one in (a, b)]
    return PromptDiff(
        {name: lines for name, lines in parts.items() if lines},
        reasoning=hashes[0][0] != hashes[1][0],
        answer=hashes[0][1] != hashes[1][1],
    )


def _told(file: Instructions) -> Iterator[tuple[str, list[str]]]:
    """Yield each part of a file with its lines."""
    yield "fields and labels", [*(f"{k}: {v}" for k, v in file.fields.items()), *map(repr, file.labels.items())]
    if file.reasoning_side is not None:
        side = file.reasoning
        for name in side.exemplars.sets:
            yield f"I_β, exemplars {name}", file.reasoning_prefix(name).splitlines()
        yield "I_β, example", (side.request.source + side.completion.source).splitlines()
        settings = {**side.decoding, "stop": side.stop, "extract": dict(side.extract_settings), "chat": side.chat}
        yield "I_β, settings", [f"{key}: {value}" for key, value in settings.items()]
    answer = file.answer_side
    yield "I_τ, instructions", answer.instructions.splitlines()
    yield "I_τ, template", answer.template.source.splitlines()
    variants = [f"{use}: {template.source}" for use, template in answer.reasoning.items()]
    yield "I_τ, settings", [*variants, f"truncate: {', '.join(answer.truncate)}", f"chat: {answer.chat}"]
