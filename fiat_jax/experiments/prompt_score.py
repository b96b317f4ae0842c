"""`fiat prompt score`: candidates of an instruction file, ranked on validation rows before anything is trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import rank_classification
from fiat_jax.experiments.asking import Job, generate_shard
from fiat_jax.experiments.feed import Feed, Reasons, agreement, read_reasons
from fiat_jax.experiments.files import write_json
from fiat_jax.experiments.fit import scoring_rows
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Prompts, Run
from fiat_jax.models.model import Model, load_model
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.cost import money
from fiat_jax.reasoning.generate import bill
from fiat_jax.tasks.task import Row, Task

NEVER_READ = ("test",)


@dataclasses.dataclass(frozen=True)
class Scored:
    """How a candidate did: θ_β's own accuracy, and what its reasoning adds to log P(gold) under the untuned θ_τ.

    `gain` is the mean over rows of log P(gold | x, ŷ_β, I_τ) - log P(gold | x, I_τ), in nats, `stderr` its standard
    error; both models are as they come.
    """

    file: str
    set: str
    split: str
    rows: int
    accuracy: float
    gain: float
    stderr: float
    with_reasoning: float
    without: float


def for_scoring(task: Task, split: str, training: Sequence[str]) -> Task:
    """Return a task that has nothing but the rows that candidates are judged by and those that exemplars come from.

    Raises:
        UserError: the rows are those of the test split.
    """
    if split in NEVER_READ:
        raise UserError(f"prompts are chosen by what they score, so never on {split!r}; give a validation split")
    if split in training:
        raise UserError(f"split {split!r} is one that exemplars come from; score on rows that no prompt shows")
    return dataclasses.replace(task, splits={k: v for k, v in task.splits.items() if k in (split, *training)})


def print_cost(jobs: Sequence[Job], console: Console) -> None:
    """Say what asking for all candidates takes."""
    bills = [bill(job.task, job.rows, job.renderer, job.backend, job.store, job.options, job.prices) for job in jobs]
    for job, one in zip(jobs, bills, strict=True):
        cost = "" if one.cost_at_most is None else f", which cost {money(one.cost_at_most)} at most"
        console.print(
            f"{job.reason.prompts.file}: {one.requests:,} requests of {one.wanted:,} are not stored in set "
            f"{one.set_key}: {one.prompt_tokens:,} prompt tokens, at most {one.completion_tokens_at_most:,} answer "
            f"tokens{cost}",
            highlight=False,
        )
        job.expect(one)


def score_prompts(run: Run, jobs: Sequence[Job], workdir: Path, console: Console) -> list[Scored]:
    """Ask for what is missing, score every candidate, print them best first, and write WORKDIR/prompts.json."""
    mesh, found = run.mesh.build(), []
    with jax.set_mesh(mesh):
        for job in jobs:
            generate_shard(job, workdir, console if console.is_terminal else None)
        model, tokenizer = load_model(run.model, mesh, tuned=False), Tokenizer.from_directory(run.model.path)
        for job in jobs:
            found.append(_score(run, job, model, tokenizer))
    found.sort(key=lambda one: (-one.gain, -one.accuracy))
    table = Table(title=f"{run.task.name}: candidates, best first")
    for name in ("file", "θ_β's accuracy", "gain in log P(gold)", "± standard error", "rows"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for one in found:
        table.add_row(one.file, f"{one.accuracy:.1f}", f"{one.gain:+.3f}", f"{one.stderr:.3f}", f"{one.rows:,}")
    console.print(table)
    write_json(workdir / "prompts.json", [dataclasses.asdict(one) for one in found])
    return found


def _score(run: Run, job: Job, model: Model, tokenizer: Tokenizer) -> Scored:
    task, key = job.task, job.plan().provenance.set_key
    reasons = read_reasons(task, job.rows, dataclasses.replace(job.reason.reasoning, set=key))
    rows = reasons.without_excluded(task, job.rows)
    gold = [row[task.answer_field] for row in rows]
    right = agreement(task, gold, [reasons.by_id[row[task.id_field]].answer for row in rows])
    prompts: Prompts = dataclasses.replace(run.prompts, file=job.reason.prompts.file)
    instructions = load_instructions(prompts.file)
    sums: dict[str, np.ndarray] = {}
    for name in ("fiat", "fiat-no-reasoning"):
        feed = Feed(task, instructions, tokenizer, prompts, find_paradigm(name))
        sums[name] = _log_likelihoods(run, feed, rows, reasons, model)
    gains = sums["fiat"] - sums["fiat-no-reasoning"]
    return Scored(
        file=prompts.file,
        set=key,
        split=job.reason.splits[0],
        rows=len(rows),
        accuracy=100 * float(right.mean()),
        gain=float(gains.mean()),
        stderr=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf"),
        with_reasoning=float(sums["fiat"].mean()),
        without=float(sums["fiat-no-reasoning"].mean()),
    )


def _log_likelihoods(run: Run, feed: Feed, rows: Sequence[Row], reasons: Reasons, model: Model) -> np.ndarray:
    """Return log P of each row's right answer, its end token included; float64 [n]."""
    examples = feed.inputs(rows, reasons)
    gold = [feed.renderer.candidates([row[feed.task.answer_field]]) for row in rows]
    scorer = Scorer(model, feed, run.train.row_length, scoring_rows(run.train.batch_rows, model))
    batches = ScoringBatches(examples, gold, scorer.row_length, scorer.batch_rows, feed.layout)

    def score(batch: Any):
        return scorer.log_probs(batch, None, model.trainable)

    return np.array([scores[0] for scores in rank_classification(score, examples, gold, batches)])  # pyright: ignore
