"""`fiat train` with parts: several tasks, drawn at their rates, train one adapter; each is measured apart."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import ExampleCache, Examples, content_key
from fiat_jax.data.seqio_tasks import make_seqio_mixture, tokenise
from fiat_jax.distributed import barrier, is_main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import read_predictions, write_predictions
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.bundle import write_bundle
from fiat_jax.experiments.cells import Done, check_cells, facts_of, stored_facts
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.experiments.files import write_json
from fiat_jax.experiments.fit import Job, Selection, fit
from fiat_jax.experiments.matrix import inputs_of, print_results
from fiat_jax.experiments.measured import Figures, result_rows
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.experiments.results import write_results
from fiat_jax.experiments.spec import Mixture, Point, Run
from fiat_jax.tasks.task import Row
from fiat_jax.training.config import TrainConfig

Source = tuple[Feed, Sequence[Row], Reasons]  # how a part's rows are rendered, those that train, and their ŷ_β
SHARED = ("model", "lora", "train", "mesh")


def run_mixture(mixture: Mixture, parts: Mapping[str, Run], workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Train one adapter on all parts, report each, and leave a bundle for each in parts/PART.

    Raises:
        UserError: what is wrong with a part, before any training.
    """
    begun = time.monotonic()
    _check(parts)
    paradigms = {part: find_paradigm(run.paradigm, run.own) for part, run in parts.items()}
    benches = {part: Bench(run, (0,), [paradigms[part]]) for part, run in parts.items()}
    cells = {
        part: Cell(paradigms[part], len(one.train_rows), one.run.train.seed, part) for part, one in benches.items()
    }
    key = _key(mixture, benches, cells)
    done = _stored(cells, workdir, key)
    if done is None:
        check_cells((one, cells[part]) for part, one in benches.items())
        done = _train(mixture, benches, cells, key, workdir, console)
    found = {part: result_rows(benches[part], one) for part, one in done.items()}
    rows = [row for part in found for row in found[part]]
    if is_main():
        path = write_results(
            workdir,
            "train",
            inputs={part: inputs_of(benches[part], [one]) for part, one in done.items()},
            rows=rows,
            seconds=time.monotonic() - begun,
            details={"mixture": dataclasses.asdict(mixture), "facts": dict(next(iter(done.values())).facts)},
        )
        for part in found:
            print_results(benches[part], Figures(found[part], [], None), paradigms[part].name, console)
        console.print(f"results: {path}")
    return rows


def _check(parts: Mapping[str, Run]) -> None:
    first, run = next(iter(parts.items()))
    lora = find_paradigm(run.paradigm, run.own).lora
    for part, other in parts.items():
        paradigm = find_paradigm(other.paradigm, other.own)
        name = paradigm.name
        if not paradigm.trained:
            raise UserError(f"a mixture trains one adapter, and {name} trains none; choose another Run.paradigm")
        if paradigm.writes == "both" or paradigm.dropout:
            raise UserError(f"a mixture reads every row in one way, and {name} in two; choose another Run.paradigm")
        if paradigm.lora != lora:
            raise UserError(
                f"the parts {first} and {part} of the mixture train one model, of {run.paradigm} and {name} one trains "
                "adapters and one all weights: choose paradigms that agree in it"
            )
        for name in SHARED:
            if getattr(other, name) != getattr(run, name):
                raise UserError(
                    f"the parts {first} and {part} of the mixture differ in their {name}, and train one model: set it "
                    "without a part's name"
                )


def _key(mixture: Mixture, benches: Mapping[str, Bench], cells: Mapping[str, Cell]) -> str:
    return content_key(
        dict(mixture.rates), mixture.draws, {part: dict(bench.identity(cells[part])) for part, bench in benches.items()}
    )


def _stored(cells: Mapping[str, Cell], workdir: Path, key: str) -> dict[str, Done] | None:
    """Return all parts' results where they are there and of this mixture."""
    found = {}
    for part, cell in cells.items():
        predictions = workdir / "predictions" / f"{cell.name}.jsonl"
        facts = stored_facts(workdir / "cells" / f"{cell.name}.json", predictions, key)
        if facts is None:
            return None
        found[part] = Done(cell, read_predictions(predictions), facts)
    return found


def _train(
    mixture: Mixture,
    benches: Mapping[str, Bench],
    cells: Mapping[str, Cell],
    key: str,
    workdir: Path,
    console: Console,
) -> dict[str, Done]:
    bench = next(iter(benches.values()))
    feeds = {part: one.feed(cells[part]) for part, one in benches.items()}
    selections, sources = {}, {}
    for part, one in benches.items():
        kept, held = one.split(cells[part])
        reasons = one.reasons_for(cells[part], one.train_rows)
        selections[part] = Selection(one.run, feeds[part], held, reasons)
        sources[part] = (feeds[part], kept, reasons)
    cache = Path(bench.run.data.cache) if bench.run.data.cache else workdir / "cache"
    examples, config = _drawn(mixture, sources, bench.run.train, cache)
    facts = {f"{part}: {k}": v for part, one in benches.items() for k, v in one.identity(cells[part]).items()}
    run = dataclasses.replace(bench.run, train=config)
    job = Job(run, examples, None, selections, {**facts, "Mixture": repr((mixture.rates, mixture.draws))})
    name = f"{bench.run.paradigm}-mixture-seed{run.train.seed}"
    directory = workdir / "cells" / name
    fitted = fit(job, [Point.of(run)], directory, lambda where: listeners_for(where, f"{name} {where.name}", console))
    done = {}
    for part, one in benches.items():
        cell, reasons = cells[part], one.reasons_for(cells[part], one.report_rows)
        prepared = fitted.scorers[part].prepare(one.report_rows, reasons)
        predictions = prepared.predict(fitted.model.trainable)
        write_bundle(workdir / "parts" / part / "bundle", fitted.model, feeds[part], one.run, one.reasons)
        known: dict[str, Any] = {"key": key, **facts_of(fitted)}
        if is_main():
            path = workdir / "predictions" / f"{cell.name}.jsonl"
            known["predictions_sha256"] = write_predictions(path, predictions)
            write_json(workdir / "cells" / f"{cell.name}.json", known)
        barrier(cell.name)
        done[part] = Done(cell, predictions, known)
    return done


def _draw(mixture: Mixture, sources: Mapping[str, Source], epochs: int, cache: Path) -> Examples:
    """Return the examples of all epochs, drawn of the parts at their rates, none twice before all others of its part.

    They are a seqio Mixture's, kept in the cache under all that determines them.
    """
    draws = epochs * (mixture.draws or sum(len(rows) for _, rows, _ in sources.values()))
    contents = {part: feed.content(rows, reasons) for part, (feed, rows, reasons) in sources.items()}

    def build():
        tasks = {part: feed.seqio_task(rows, reasons) for part, (feed, rows, reasons) in sources.items()}
        rates = {tasks[part]: rate for part, rate in mixture.rates.items()}
        return tokenise(make_seqio_mixture(rates), "train", draws)

    key = content_key("mixture", dict(mixture.rates), draws, contents)
    return ExampleCache(cache).get(key, build)


def _drawn(
    mixture: Mixture, sources: Mapping[str, Source], config: TrainConfig, cache: Path
) -> tuple[Examples, TrainConfig]:
    """Return what is drawn for all epochs, and the settings of one pass over it, evaluated as often as there are."""

    layout = next(feed.layout for feed, _, _ in sources.values())

    def steps_of(examples: Examples) -> int:
        return TrainBatches(examples, config.row_length, config.batch_rows, config.seed, layout).num_steps(1)

    epochs = config.epochs
    examples = _draw(mixture, sources, epochs, cache)
    steps = steps_of(examples)
    if steps < config.min_steps:
        epochs = -(-config.min_steps * epochs // steps)
        examples = _draw(mixture, sources, epochs, cache)
        steps = steps_of(examples)
    every = config.evaluate_every or -(-steps // epochs)
    return examples, dataclasses.replace(config, epochs=1, min_steps=0, evaluate_every=every)
