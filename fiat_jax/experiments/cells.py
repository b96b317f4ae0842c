"""The cells of an experiment: what each is made of, what it trains on, and its predictions."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import answer_predictions
from fiat_jax.evaluation.predictions import Prediction, read_predictions, write_predictions
from fiat_jax.experiments.bundle import write_bundle
from fiat_jax.experiments.feed import Feed, Reasons, read_reasons
from fiat_jax.experiments.fit import Fit, fit, select_split
from fiat_jax.experiments.paradigms import Paradigm, find_paradigm
from fiat_jax.experiments.results import file_hash, write_json
from fiat_jax.experiments.spec import Run
from fiat_jax.models.checkpoints import WeightFiles
from fiat_jax.prompts.instructions import Instructions, load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.tasks.splits import nested_subsets
from fiat_jax.tasks.task import Row, read_rows
from fiat_jax.training.log import Listener

Listeners = Callable[[Path], Sequence[Listener]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One system: a paradigm, its number of training rows (0: none are used), and a seed."""

    paradigm: Paradigm
    size: int
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in files and tables."""
        return self.paradigm.name if not self.paradigm.trained else f"{self.paradigm.name}-{self.size}-seed{self.seed}"


class Bench:
    """The rows, reasoning and instructions that all cells share; everything is read and checked before any training."""

    def __init__(self, run: Run, sizes: Sequence[int], paradigms: Sequence[Paradigm]):
        self.run, self.task = run, run.task
        self.instructions: Instructions = _instructions(run)
        self.tokenizer = Tokenizer.from_directory(run.model.path)
        self.train_rows = read_rows(run.task, run.data.train_split)
        self.report_rows = read_rows(run.task, run.data.report_split)
        self.reasons = Reasons({})
        if any(paradigm.needs_reasoning for paradigm in paradigms):
            self.reasons = read_reasons(run.task, [*self.train_rows, *self.report_rows], run.reasoning)
            ids = run.task.id_field
            self.train_rows = [row for row in self.train_rows if row[ids] not in self.reasons.excluded]
            self.report_rows = [row for row in self.report_rows if row[ids] not in self.reasons.excluded]
        too_many = [size for size in sizes if size > len(self.train_rows)]
        if too_many:
            raise UserError(f"sizes {too_many} exceed the {len(self.train_rows)} training rows there are; 0 means all")
        self.theta_tau_fingerprint = WeightFiles(run.model.path).fingerprint()

    def cells(self, paradigms: Sequence[Paradigm], sizes: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
        """Return the matrix; a paradigm without training has one cell."""
        real = list(dict.fromkeys(size or len(self.train_rows) for size in sizes))
        untrained = [Cell(paradigm, 0, 0) for paradigm in paradigms if not paradigm.trained]
        trained = [p for p in paradigms if p.trained]
        return untrained + [Cell(p, size, seed) for seed in seeds for size in real for p in trained]

    def subset(self, cell: Cell) -> list[Row]:
        """Return a cell's rows for training and selection; those of a smaller size are among those of a larger one."""
        task = self.task
        stratify = tuple(name for name in (task.language_field,) if name)
        stratify += (task.answer_field,) if task.kind == "label" else ()
        return nested_subsets(self.train_rows, [cell.size], cell.seed, stratify=stratify)[cell.size]

    def reasons_for(self, cell: Cell, rows: Sequence[Row]) -> Reasons:
        """Return the ŷ_β that a cell's rows of one split are given."""
        if not cell.paradigm.needs_reasoning:
            return Reasons({})
        return self.reasons.shuffled(rows, self.task, cell.seed) if cell.paradigm.shuffled else self.reasons

    def key(self, cell: Cell, learning_rates: Sequence[float]) -> str:
        """Return sha256 of all that a cell's result depends on."""
        run = dataclasses.replace(self.run, mesh=type(self.run.mesh)())
        sources = [file_hash(source) if Path(source).is_file() else source for source in self.task.splits.values()]
        parts = [repr(cell), repr(run), sources, self.instructions.answer_hash, self.reasons.set_key]
        parts += [list(learning_rates), self.theta_tau_fingerprint, self.tokenizer.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _instructions(run: Run) -> Instructions:
    if not run.prompts.file:
        raise UserError("no instruction file: give one with --gin.Prompts.file=FILE.yaml (`fiat init` drafts it)")
    return load_instructions(run.prompts.file)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished cell: its predictions of the report split, and facts for results.json."""

    cell: Cell
    predictions: Sequence[Prediction]
    facts: Mapping[str, Any]


def run_cell(
    bench: Bench, cell: Cell, learning_rates: Sequence[float], workdir: Path, listeners: Callable[[str], Listeners]
) -> Done:
    """Return a cell's result: what is stored for it, or made now. A killed cell goes on where it was."""
    key = bench.key(cell, learning_rates)
    path, predictions = workdir / "cells" / f"{cell.name}.json", workdir / "predictions" / f"{cell.name}.jsonl"
    if path.exists() and predictions.exists():
        facts = json.loads(path.read_text())
        if facts["key"] == key and facts["predictions_sha256"] == file_hash(predictions):
            return Done(cell, read_predictions(predictions), facts)
    found, facts = (
        _icl(bench) if not cell.paradigm.trained else _trained(bench, cell, learning_rates, workdir, listeners, key)
    )
    digest = write_predictions(predictions, found)
    facts = {"key": key, "predictions_sha256": digest, **facts}
    write_json(path, facts)
    return Done(cell, found, facts)


def _icl(bench: Bench) -> tuple[list[Prediction], dict[str, Any]]:
    """Return θ_β's own stored answers."""
    reasons, ids = bench.reasons, bench.task.id_field
    answers = [reasons.by_id[row[ids]].answer for row in bench.report_rows]
    return answer_predictions(bench.task, bench.report_rows, answers), {"set": reasons.set_key}


def _trained(
    bench: Bench,
    cell: Cell,
    learning_rates: Sequence[float],
    workdir: Path,
    listeners: Callable[[str], Listeners],
    key: str,
) -> tuple[list[Prediction], dict[str, Any]]:
    run = dataclasses.replace(bench.run, train=dataclasses.replace(bench.run.train, seed=cell.seed))
    feed = Feed(bench.task, bench.instructions, bench.tokenizer, run.prompts, cell.paradigm)
    rows = bench.subset(cell)
    reasons = bench.reasons_for(cell, bench.train_rows)
    kept, held = select_split(bench.task, run, rows)
    cache = Path(run.data.cache) if run.data.cache else workdir / "cache"
    everything = feed.training_examples(bench.train_rows, reasons, cache)
    place = {row_id: index for index, row_id in enumerate(everything.row_ids)}
    examples = everything.take(place[row[bench.task.id_field]] for row in kept)
    directory = workdir / "cells" / cell.name
    fitted = fit(run, feed, examples, (held, reasons), learning_rates, directory, {"key": key}, listeners(cell.name))
    report_reasons = bench.reasons_for(cell, bench.report_rows)
    predictions = fitted.predict(bench.report_rows, report_reasons, run.prompts.max_new_tokens)
    write_bundle(directory / "bundle", fitted.model, feed, run, bench.reasons.set_key, bench.reasons.model)
    return predictions, _facts(fitted)


def _facts(fitted: Fit) -> dict[str, Any]:
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
    }


__all__ = ["Bench", "Cell", "Done", "find_paradigm", "run_cell"]
