"""What `fiat reason` is asked, and the import of reasoning that files hold."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console

from fiat_jax.errors import UserError
from fiat_jax.experiments.spec import Prompts, Reasoning
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.importer import import_reasoning
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Row, Task, read_rows


@dataclasses.dataclass(frozen=True)
class Reason:
    """What `fiat reason` is asked.

    Args:
        splits: whose rows get reasoning; none named: all splits of the task.
        tokenizer: the directory of a tokenizer that counts θ_β's tokens.
    """

    task: Task
    prompts: Prompts
    reasoning: Reasoning
    options: GenerateOptions
    splits: tuple[str, ...] = ()
    tokenizer: str = ""


@dataclasses.dataclass(frozen=True)
class Import:
    """What `fiat reason --import` is asked.

    Args:
        rationale, answer: the fields of the file that hold the reasoning and the large model's answer.
        model, revision: which model wrote it.
        splits: whose rows it is for; none named: all splits of the task.
    """

    task: Task
    reasoning: Reasoning
    rationale: str = "reasoning"
    answer: str = ""
    model: str = ""
    revision: str = ""
    splits: tuple[str, ...] = ()


def rows_of(task: Task, splits: Sequence[str]) -> list[Row]:
    """Return the rows of several splits, of all where none is named, with or without answers."""
    return [row for split in splits or task.splits for row in read_rows(task, split, answers_required=False)]


def import_files(job: Import, files: Sequence[str], console: Console) -> None:
    """Bring reasoning that files hold into the store: one set, whatever the number of files."""
    if not job.model:
        raise UserError("which model wrote this reasoning? Give --gin.Import.model='NAME'")
    rows, store = rows_of(job.task, job.splits), ReasoningStore(job.reasoning.store)
    mapping = {"rationale": job.rationale, **({"answer": job.answer} if job.answer else {})}
    for file in files:
        done = import_reasoning(
            job.task, rows, file, store, mapping=mapping, model=job.model, revision=job.revision or None
        )
        lacking = len(done.without_reasoning)
        console.print(
            f"{file}: {done.written:,} rows imported into set {done.set_key} of {store.path}, {done.before:,} were "
            f"there, {done.same_content:,} share another row's, {lacking:,} of {len(rows):,} rows are not in it, "
            f"{done.without_answer:,} came without an answer, {done.unknown:,} entries belong to no row",
            highlight=False,
        )
        if done.foreign_answers:
            labels = ", ".join(job.task.labels)
            console.print(
                f"warning: {done.foreign_answers:,} answers of the large model are none of the labels {labels}; θ_τ "
                "reads them as they are",
                highlight=False,
            )
