"""`fiat evaluate` and `fiat predict`: a trained bundle answers the rows of a split or of a file."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fiat_jax.distributed import is_main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction, write_predictions
from fiat_jax.evaluation.scores import score_predictions
from fiat_jax.experiments.bundle import Bundle, open_bundle
from fiat_jax.experiments.feed import Reasons, read_reasons
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.results import (
    print_tables,
    source_of,
    table_by_language,
    table_of_scores,
    write_results,
)
from fiat_jax.experiments.spec import Reasoning
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Row, read_rows

logger = logging.getLogger(__name__)


def reasons_of(bundle: Bundle, rows: Sequence[Row], reasoning: Reasoning | None) -> Reasons:
    """Return the ŷ_β of rows from the bundle's reasoning set, or from the one named."""
    paradigm = find_paradigm(bundle.paradigm, bundle.own)
    if not paradigm.reads_reasoning:
        return Reasons({})
    where = reasoning or bundle.reasoning
    where = dataclasses.replace(where, vote=where.vote or paradigm.vote)
    found = read_reasons(bundle.task, rows, where, answered_without=bool(paradigm.dropout))
    if found.missing:
        logger.warning("%d of %d rows have no reasoning, and are answered without it", len(found.missing), len(rows))
    return found.shuffled(rows, bundle.task, bundle.seed) if paradigm.shuffled else found


def _predict(bundle: Bundle, rows: Sequence[Row], reasons: Reasons, mesh: MeshConfig) -> list[Prediction]:
    scorer = open_bundle(bundle, mesh)
    return scorer.prepare(rows, reasons).predict(scorer.model.trainable)


def evaluate(
    bundle: Bundle, splits: dict[str, str], split: str, reasoning: Reasoning | None, mesh: MeshConfig, workdir: Path,
    console: Console,
) -> list[dict]:  # fmt: skip
    """Score a bundle on a split, write results.json and predictions, print the table; return the result rows."""
    begun = time.monotonic()
    task = dataclasses.replace(bundle.task, splits={**bundle.task.splits, **splits})
    bundle = dataclasses.replace(bundle, task=task)
    rows = read_rows(task, split)
    reasons = reasons_of(bundle, rows, reasoning)
    if reasons.excluded:
        rows = reasons.without_excluded(task, rows)
        console.print(f"{len(reasons.excluded)} rows are left out: the prompt of their reasoning shows their answers")
    predictions = _predict(bundle, rows, reasons, mesh)
    name = f"{bundle.paradigm}-{split}"
    known = {
        "cell": name,
        "paradigm": bundle.paradigm,
        "theta_tau": bundle.model.path,
        "theta_beta": reasons.model or None,
        "task": task.name,
        "size": None,
        "seed": bundle.seed,
        "split": split,
        "selected_on": None,
    }
    found = [{**known, **row} for row in score_predictions(task, rows, predictions)]
    if is_main():
        inputs = {
            "bundle": {"path": str(bundle.directory), "theta_tau": bundle.theta_tau},
            "reasoning_set": reasons.set_key,
            "data": {split: source_of(task.splits[split])},
            "predictions": {name: write_predictions(workdir / "predictions" / f"{name}.jsonl", predictions)},
        }
        path = write_results(workdir, "evaluate", inputs=inputs, rows=found, seconds=time.monotonic() - begun)
        metric = task.metrics[0]
        shown = [{**row, "size": len(rows)} for row in found]
        title = f"{task.name}, {metric} in per cent with 95% interval, {split}"
        print_tables(console, table_of_scores(shown, metric, title), table_by_language(found, metric))
        console.print(f"results: {path}")
    return found


def predict(
    bundle: Bundle, source: str, reasoning: Reasoning | None, mesh: MeshConfig, output: Path, console: Console
) -> int:
    """Answer the rows of a file; write one JSON line a row; return how many."""
    bundle = dataclasses.replace(bundle, task=dataclasses.replace(bundle.task, splits={"input": source}))
    rows = read_rows(bundle.task, "input", answers_required=False)
    reasons = reasons_of(bundle, rows, reasoning)
    if reasons.excluded:
        shown = ", ".join(sorted(reasons.excluded)[:3])
        raise UserError(
            f"{source}: the prompt of the reasoning shows the answers of {len(reasons.excluded)} rows ({shown}); "
            "leave them out"
        )
    predictions = _predict(bundle, rows, reasons, mesh)
    if is_main():
        write_predictions(output, predictions)
    console.print(f"{len(predictions):,} predictions: {output}")
    return len(predictions)


def read_splits(pairs: list[str]) -> dict[str, str]:
    """Return split → source of "name=source" arguments."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--data {pair}: expected NAME=FILE, such as test=data/test.jsonl")
    return dict(pair.split("=", 1) for pair in pairs)


def choose_split(named: str | None, splits: dict[str, str]) -> str:
    """Return the split to score: the one named, else the only one given with --data, else validation."""
    if named is None and len(splits) > 1:
        raise UserError(f"--data gives {', '.join(splits)}: which one is to be scored? Say so with --split NAME")
    return named or next(iter(splits), "validation")
