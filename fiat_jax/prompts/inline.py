"""An instruction file that needs no rows beside it: its exemplars written out."""

from pathlib import Path
from typing import Any

import yaml

from fiat_jax.prompts.exemplars import Exemplar, RowsById
from fiat_jax.prompts.instructions import Instructions, load_instructions
from fiat_jax.prompts.schema import read_yaml
from fiat_jax.remote import fetched


def inlined(path: str | Path, rows_by_id: RowsById) -> str:
    """Return an instruction file's text with the exemplars that it names by row id written out, ids kept.

    Both hashes stay what they were. A file that names none comes back as it is, comments and all.

    Raises:
        UserError: an id that no row has.
    """
    text, side = fetched(path).read_text("utf-8"), load_instructions(path).reasoning_side
    if side is None or side.exemplars.resolved:
        return text
    instructions = load_instructions(path, rows_by_id)
    exemplars = instructions.reasoning.exemplars
    sets = {name: [_written(instructions, one) for one in chosen] for name, chosen in exemplars.sets.items()}
    content = read_yaml(text, str(path)).content
    written = {"by": exemplars.by, "sets": sets} if exemplars.by else next(iter(sets.values()))
    content["reasoning"]["exemplars"] = written
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _written(instructions: Instructions, exemplar: Exemplar) -> dict[str, Any]:
    assert exemplar.row is not None
    fields = {name: exemplar.row[name] for name in instructions.fields if name in exemplar.row}
    named = {} if exemplar.id is None else {"id": exemplar.id}
    return {**named, **fields, "rationale": exemplar.rationale, "answer": exemplar.answer}
