"""The cells of an experiment, one after another: stored results are read, the others are made."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from fiat_jax import remote
from fiat_jax.data.examples import content_key
from fiat_jax.distributed import barrier, is_main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import answer_predictions
from fiat_jax.evaluation.predictions import Prediction, StoredPredictions, write_predictions
from fiat_jax.experiments.aside import make_place
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.bundle import write_bundle
from fiat_jax.experiments.feed import Reasons
from fiat_jax.experiments.files import AT, file_hash, write_json
from fiat_jax.experiments.fit import Fit, Job, Selection, fit, scoring_rows
from fiat_jax.experiments.large import identity_of_large, rank_by_large
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Point
from fiat_jax.models.model import load_model
from fiat_jax.training.log import Listener

BARE = "-bare"  # after the name of a cell and of a paradigm: what it answers without ŷ_β


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished cell: its predictions of the report split, and facts for results.json.

    `bare` are predictions of the same rows without ŷ_β, of a paradigm that is trained to do without.
    """

    cell: Cell
    predictions: Sequence[Prediction]
    facts: Mapping[str, Any]
    bare: Sequence[Prediction] | None = None

    @property
    def systems(self) -> list[tuple[str, str, Sequence[Prediction]]]:
        """Return (cell, system, predictions) of every line that the cell has in tables."""
        whole = [(self.cell.name, self.cell.system, self.predictions)]
        if self.bare is None:
            return whole
        paradigm, at, tau = self.cell.system.partition(AT)
        return [*whole, (self.cell.name + BARE, f"{paradigm}{BARE}{at}{tau}", self.bare)]


def run_cell(
    bench: Bench, cell: Cell, search: Sequence[Point], workdir: Path, console: Console, *, renew: bool = False
) -> Done:
    """Return a cell's result: what is stored for it, or made now. A killed cell goes on where it was.

    With `renew` a cell that was made with other settings is put aside; without, it is an error.
    """
    key, path, predictions = _place(bench, cell, search, workdir)
    stored = stored_facts(path, predictions, key)
    if stored is None and renew:
        make_place(workdir, cell.name, _identity(bench, cell))
        stored = stored_facts(path, predictions, key)
    if stored is not None:
        bare = _bare(predictions) if cell.paradigm.dropout else None
        return Done(cell, StoredPredictions(predictions), stored, None if bare is None else StoredPredictions(bare))
    if cell.paradigm.trained:
        found, bare, facts = _trained(bench, cell, search, workdir, console)
    else:
        found, bare = (predict_as_it_is if cell.paradigm.answers == "tau" else _icl)(bench, cell), None
        facts = {"set": bench.reasons_of(cell.paradigm).set_key} if cell.paradigm.needs_reasoning else {}
    if is_main():
        if bare is not None:
            facts = {"predictions_bare_sha256": write_predictions(_bare(predictions), bare), **facts}
        facts = {"key": key, "predictions_sha256": write_predictions(predictions, found), **facts}
        write_json(path, facts)
        remote.push(workdir)
    barrier(cell.name)
    return Done(cell, found, facts, bare)


def check_cells(cells: Iterable[tuple[Bench, Cell]]) -> None:
    """Render the rows that trained cells are selected and reported by, so that what does not fit shows before training.

    Raises:
        UserError: a row that does not fit `Prompts.max_length`, with the longest answer it may have.
    """
    reported = set()
    for bench, cell in cells:
        sets = [(bench.split(cell)[1], bench.train_rows)]
        if (bench.tau, cell.paradigm) not in reported:
            reported.add((bench.tau, cell.paradigm))
            sets.append((bench.report_rows, bench.report_rows))
        feed = bench.feed(cell)
        for rows, among in sets:
            feed.inputs(rows, bench.reasons_for(cell, among))


def is_done(bench: Bench, cell: Cell, search: Sequence[Point], workdir: Path) -> bool:
    """Return whether `run_cell` has made this cell already."""
    key, path, predictions = _place(bench, cell, search, workdir)
    return stored_facts(path, predictions, key) is not None


def _place(bench: Bench, cell: Cell, search: Sequence[Point], workdir: Path) -> tuple[str, Path, Path]:
    """Return what a cell's result is known by, and the files of its facts and its predictions."""
    key = content_key(_identity(bench, cell), [dataclasses.astuple(point) for point in points_of(cell, search)])
    return key, workdir / "cells" / f"{cell.name}.json", workdir / "predictions" / f"{cell.name}.jsonl"


def _identity(bench: Bench, cell: Cell) -> dict[str, str]:
    return {**bench.identity(cell), **(identity_of_large(bench) if cell.paradigm.scores else {})}


def points_of(cell: Cell, search: Sequence[Point]) -> list[Point]:
    """Return the training runs of a cell: where all weights are tuned, points that differ in rank alone are one."""
    if not cell.paradigm.trained:
        return []
    return list(search if cell.paradigm.lora else {(p.learning_rate, p.epochs): p for p in reversed(search)}.values())


def _bare(predictions: Path) -> Path:
    """Return the file of the predictions that were made without ŷ_β."""
    return predictions.with_name(f"{predictions.stem}{BARE}{predictions.suffix}")


def stored_facts(path: Path, predictions: Path, key: str) -> dict[str, Any] | None:
    """Return the facts of a finished cell, if it is this one and its predictions are as they were written.

    Raises:
        UserError: a damaged file; what a finished cell cost is not spent again without a word.
    """
    if not path.exists() or not predictions.exists():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
        whole = [(predictions, facts["predictions_sha256"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and the cell is made anew") from None
    if "predictions_bare_sha256" in facts:
        whole.append((_bare(predictions), facts["predictions_bare_sha256"]))
    same = facts.get("key") == key and all(file.exists() and file_hash(file) == held for file, held in whole)
    return facts if same else None


def _icl(bench: Bench, cell: Cell) -> list[Prediction]:
    """Return θ_β's own stored answers, or how it ranks the labels after its stored rationale."""
    if cell.paradigm.scores:
        return rank_by_large(bench)
    reasons, ids = bench.reasons_for(cell, bench.report_rows), bench.task.id_field
    return answer_predictions(bench.task, bench.report_rows, [reasons.by_id[r[ids]].answer for r in bench.report_rows])


def predict_as_it_is(bench: Bench, cell: Cell) -> list[Prediction]:
    """Return what θ_τ answers to the reported rows before any step, reading what a paradigm lets it read."""
    run, mesh = bench.run, bench.run.mesh.build()
    with jax.set_mesh(mesh):
        model = load_model(run.model, mesh, tuned=False)
        rows = scoring_rows(run.train.batch_rows, model)
        scorer = Scorer(model, bench.feed(cell), run.train.row_length, rows, run.data.length_normalise)
        prepared = scorer.prepare(bench.report_rows, bench.reasons_for(cell, bench.report_rows))
        return prepared.predict(model.trainable)


def _trained(
    bench: Bench, cell: Cell, search: Sequence[Point], workdir: Path, console: Console
) -> tuple[list[Prediction], list[Prediction] | None, dict[str, Any]]:
    run = dataclasses.replace(bench.run, train=dataclasses.replace(bench.run.train, seed=cell.seed))
    feed, (kept, held) = bench.feed(cell), bench.split(cell)
    cache = Path(run.data.cache) if run.data.cache else workdir / "cache"
    job = Job(
        run=run,
        examples=bench.examples(feed, cell, kept, cache),
        bare=bench.bare_examples(feed, cell, kept, cache),
        selections={"": Selection(run, feed, held, bench.reasons_for(cell, bench.train_rows))},
        facts=bench.identity(cell),
    )
    directory = workdir / "cells" / cell.name

    def listeners(where: Path) -> list[Listener]:
        return listeners_for(where, f"{cell.name} {where.name}", console)

    fitted = fit(job, points_of(cell, search), directory, listeners)

    def predict(reasons: Reasons) -> list[Prediction]:
        return fitted.scorers[""].prepare(bench.report_rows, reasons).predict(fitted.model.trainable)

    found = predict(bench.reasons_for(cell, bench.report_rows))
    bare = predict(Reasons({})) if cell.paradigm.dropout else None
    write_bundle(directory / "bundle", fitted.model, feed, run, bench.reasons_of(cell.paradigm))
    return found, bare, {**facts_of(fitted), "rows_trained_on": len(kept)}


def facts_of(fitted: Fit) -> dict[str, Any]:
    trained, frozen = fitted.model.num_parameters()
    return {
        "learning_rate": fitted.point.learning_rate,
        "rank": fitted.point.rank if fitted.model.lora is not None else None,
        "epochs": fitted.point.epochs,
        "search": [{**dataclasses.asdict(point), **best.metrics} for point, best in fitted.searched],
        "best_step": fitted.best.step,
        "selection": dict(fitted.best.metrics),
        "evaluations": [[e.step, dict(e.metrics)] for e in fitted.evaluations],
        "rows_trained_on": fitted.num_train,
        "rows_selected_on": fitted.num_selection,
        "trained_parameters": trained,
        "frozen_parameters": frozen,
        "attention": str(fitted.model.build.kernel),
        "truncations": fitted.truncations,
        "tokens": fitted.tokens,
        "seconds": round(fitted.seconds, 3),
        "goodput": dict(fitted.goodput),
    }
