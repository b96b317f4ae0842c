"""The cells of an experiment, one after another: stored results are read, the others are made."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiat_jax import remote
from fiat_jax.data.examples import content_key
from fiat_jax.distributed import barrier, is_main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import answer_predictions
from fiat_jax.evaluation.predictions import Prediction, read_predictions, write_predictions
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.bundle import write_bundle
from fiat_jax.experiments.fit import Fit, Job, Selection, fit
from fiat_jax.experiments.results import file_hash, write_json
from fiat_jax.training.log import Listener

# name of a training run, its directory → who watches it
Listeners = Callable[[str, Path], Sequence[Listener]]


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished cell: its predictions of the report split, and facts for results.json."""

    cell: Cell
    predictions: Sequence[Prediction]
    facts: Mapping[str, Any]


def run_cell(bench: Bench, cell: Cell, learning_rates: Sequence[float], workdir: Path, listeners: Listeners) -> Done:
    """Return a cell's result: what is stored for it, or made now. A killed cell goes on where it was."""
    key, path, predictions = _place(bench, cell, learning_rates, workdir)
    stored = stored_facts(path, predictions, key)
    if stored is not None:
        return Done(cell, read_predictions(predictions), stored)
    found, facts = (_trained if cell.paradigm.trained else _icl)(bench, cell, learning_rates, workdir, listeners)
    if is_main():
        facts = {"key": key, "predictions_sha256": write_predictions(predictions, found), **facts}
        write_json(path, facts)
        remote.push(workdir)
    barrier(cell.name)
    return Done(cell, found, facts)


def is_done(bench: Bench, cell: Cell, learning_rates: Sequence[float], workdir: Path) -> bool:
    """Return whether `run_cell` has made this cell already."""
    key, path, predictions = _place(bench, cell, learning_rates, workdir)
    return stored_facts(path, predictions, key) is not None


def _place(bench: Bench, cell: Cell, learning_rates: Sequence[float], workdir: Path) -> tuple[str, Path, Path]:
    """Return what a cell's result is known by, and the files of its facts and its predictions."""
    key = content_key(dict(bench.identity(cell)), list(learning_rates))
    return key, workdir / "cells" / f"{cell.name}.json", workdir / "predictions" / f"{cell.name}.jsonl"


def stored_facts(path: Path, predictions: Path, key: str) -> dict[str, Any] | None:
    """Return the facts of a finished cell, if it is this one and its predictions are as they were written.

    Raises:
        UserError: a damaged file; what a finished cell cost is not spent again without a word.
    """
    if not path.exists() or not predictions.exists():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and the cell is made anew") from None
    return facts if facts["key"] == key and facts["predictions_sha256"] == file_hash(predictions) else None


def _icl(bench: Bench, *_: Any) -> tuple[list[Prediction], dict[str, Any]]:
    """Return θ_β's own stored answers."""
    reasons, ids = bench.reasons, bench.task.id_field
    answers = [reasons.by_id[row[ids]].answer for row in bench.report_rows]
    return answer_predictions(bench.task, bench.report_rows, answers), {"set": reasons.set_key}


def _trained(
    bench: Bench, cell: Cell, learning_rates: Sequence[float], workdir: Path, listeners: Listeners
) -> tuple[list[Prediction], dict[str, Any]]:
    run = dataclasses.replace(bench.run, train=dataclasses.replace(bench.run.train, seed=cell.seed))
    feed, (kept, held) = bench.feed(cell), bench.split(cell)
    cache = Path(run.data.cache) if run.data.cache else workdir / "cache"
    job = Job(
        run=run,
        examples=bench.examples(feed, cell, kept, cache),
        selections={"": Selection(run, feed, held, bench.reasons_for(cell, bench.train_rows))},
        facts=bench.identity(cell),
    )
    directory = workdir / "cells" / cell.name
    fitted = fit(job, learning_rates, directory, lambda where: listeners(f"{cell.name} {where.name}", where))
    reasons = bench.reasons_for(cell, bench.report_rows)
    prepared = fitted.scorers[""].prepare(bench.report_rows, reasons)
    predictions = prepared.predict(fitted.model.trainable, run.prompts.max_new_tokens)
    write_bundle(directory / "bundle", fitted.model, feed, run, bench.reasons)
    return predictions, facts_of(fitted)


def facts_of(fitted: Fit) -> dict[str, Any]:
    trained, frozen = fitted.model.num_parameters()
    return {
        "learning_rate": fitted.learning_rate,
        "best_step": fitted.best.step,
        "selection": dict(fitted.best.metrics),
        "evaluations": [[e.step, dict(e.metrics)] for e in fitted.evaluations],
        "rows_trained_on": fitted.num_train,
        "rows_selected_on": fitted.num_selection,
        "trained_parameters": trained,
        "frozen_parameters": frozen,
        "truncations": fitted.truncations,
        "tokens": fitted.tokens,
        "seconds": round(fitted.seconds, 3),
        "goodput": dict(fitted.goodput),
    }
