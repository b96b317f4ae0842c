"""`fiat prompt draft`: θ_β writes rationales for training rows that a person chose, and a person reviews them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.experiments.asking import Job
from fiat_jax.prompts.exemplars import UNREVIEWED
from fiat_jax.reasoning.backend import complete_all
from fiat_jax.tasks.task import Row

HEAD = """\
# Exemplars for reasoning.exemplars, drafted by {model}. Read each rationale, mend it, and then delete its line
# `{mark}: true`; until then no prompt takes it. Where `large_answer` is not the answer, the rationale argues for
# another one.
"""


def chosen_rows(rows: Sequence[Row], id_field: str, wanted: Sequence[str], split: str) -> list[Row]:
    """Return the rows of these ids, in this order.

    Raises:
        UserError: the split has no such row.
    """
    by_id = {row[id_field]: row for row in rows}
    for row_id in wanted:
        if row_id not in by_id:
            raise UserError(f"--rows: split {split!r} has no row {row_id!r}.{did_you_mean(row_id, by_id)}")
    return [by_id[row_id] for row_id in wanted]


def draft_exemplars(job: Job, rows: Sequence[Row], out: Path, console: Console) -> list[dict[str, Any]]:
    """Ask θ_β about rows and write them as exemplars with its rationale and the right answer, marked unreviewed."""
    task, instructions, drafts = job.task, job.renderer.instructions, []
    answers = asyncio.run(complete_all(job.backend, [job.renderer.reasoning_prompt(row) for row in rows]))
    for row, told in zip(rows, answers, strict=True):
        if isinstance(told, Exception):
            console.print(f"row {row[task.id_field]}: no answer ({told})", markup=False, highlight=False)
            continue
        found = instructions.extract(told.text)
        shown = {name: row[name] for name in instructions.fields}
        drafts.append(
            {"id": row[task.id_field], **shown, "rationale": found.rationale, "answer": row[task.answer_field]}
            | {"large_answer": found.answer, UNREVIEWED: True}
        )
    agreeing = sum(one["large_answer"] == one["answer"] for one in drafts)
    head = HEAD.format(model=job.backend.identity()["name"], mark=UNREVIEWED)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(head + yaml.safe_dump(drafts, sort_keys=False, allow_unicode=True, width=110), "utf-8")
    console.print(
        f"{out}: {len(drafts)} exemplars to review; θ_β's answer is right in {agreeing} of them", highlight=False
    )
    return drafts
