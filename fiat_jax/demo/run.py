"""`fiat demo`: the whole line on a generated task with shipped models, from rows to a table and a question."""

import asyncio
import dataclasses
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fiat_jax.demo.claims import Finished, claims, print_claims, read_measured
from fiat_jax.demo.sanity import READERS, simple_answers
from fiat_jax.demo.task import TaskConfig, write_task
from fiat_jax.demo.world import NAME_WORDS
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.evaluation.predictions import Prediction, read_predictions
from fiat_jax.experiments import asking, runtime
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.bundle import read_bundle
from fiat_jax.experiments.cells import predict_as_it_is
from fiat_jax.experiments.files import write_json
from fiat_jax.experiments.matrix import run_experiment
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.reason import Reason
from fiat_jax.experiments.results import print_tables, table_by_language, table_of_scores
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.experiments.serve import Asked, Assembly
from fiat_jax.experiments.spec import Data, Experiment, Prompts, Reasoning, Run
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.native import Native
from fiat_jax.serving.choices import Usage
from fiat_jax.serving.config import Serve
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.pair import Pair
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Row, Task, read_rows
from fiat_jax.training.config import TrainConfig

CHECKPOINTS = Path(__file__).parent / "checkpoints"
LARGE, SMALL, UNTUNED = (CHECKPOINTS / name for name in ("demo-L", "demo-XS", "demo-XS-base"))
LONGEST = 400  # tokens of a question and its answer
READ_BY_READERS = 1000  # training rows of the simple readers
UNINSTRUCTED, INSTRUCTED = "finetune-lora", "fiat-no-reasoning"  # alike but for I_τ
BASE = "base: "  # before the names of paradigms of the θ_τ that was not instruction-tuned
SETTINGS = {name: Path(__file__).parent / f"{name}.gin" for name in ("demo", "full")}


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """The task's rows, and the experiment on them.

    Args:
        base_paradigms: those that are also run with the θ_τ that was not instruction-tuned.
        controls: those that are run at `control_sizes` alone.
        processes: see `Experiment`.
        claims: whether the claims of the paper are measured on the results (`demo.claims` says what that needs).
    """

    world: TaskConfig
    lora: LoraConfig
    train: TrainConfig
    paradigms: tuple[str, ...] = ("icl", "finetune-lora", "fiat")
    base_paradigms: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    control_sizes: tuple[int, ...] = (1000,)
    sizes: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = ()
    processes: int = 1
    claims: bool = False


def run_demo(workdir: Path, console: Console, config: DemoConfig) -> list[dict[str, Any]]:
    """Write the task, have θ_β reason, run the experiment, ask the fused pair a question, write a page.

    Returns the rows of results.json. What is done already is not done again.
    """
    begun = time.monotonic()
    runtime.start()
    console.print("1. A task: questions in ten invented languages about English passages.")
    task, file = write_task(config.world, workdir / "data")
    prompts = Prompts(file=str(file), max_length=320, max_new_tokens=12)

    console.print("2. θ_β (demo-L) reasons about every row, shown three exemplars.")
    reasoning = Reasoning(store=str(workdir / "reasoning_store"))
    native = Native(str(LARGE), dtype="float32", prefill_rows=16)
    splits = ("train", "test")
    job = asking.engine_job(Reason(task, prompts, reasoning, GenerateOptions(), splits), native, MeshConfig())
    asking.ask(job, workdir, False, console)
    reasoning = dataclasses.replace(reasoning, set=job.plan().provenance.set_key)

    console.print("3. θ_τ (demo-XS): θ_β alone, θ_τ tuned without its reasoning, and both fused.")
    run = Run(
        task=task,
        prompts=prompts,
        reasoning=reasoning,
        data=Data(report_split="test"),
        model=ModelConfig(path=str(SMALL)),
        lora=config.lora,
        train=_for_devices(config.train),
        mesh=MeshConfig(),
    )
    experiment = Experiment(
        run, config.paradigms, config.sizes, config.seeds, config.learning_rates, processes=config.processes
    )
    runtime.write_config(workdir, "\n".join(as_gin(experiment)) + "\n")
    results = run_experiment(experiment, workdir, console)
    runs = [Finished("", workdir, results)]
    if config.controls:
        console.print("   The controls:")
        others = dataclasses.replace(
            experiment, paradigms=config.controls, against=config.controls[0], sizes=config.control_sizes
        )
        runs.append(Finished("", workdir / "controls", run_experiment(others, workdir / "controls", console)))
    if config.base_paradigms:
        console.print("   The same with a θ_τ that was not instruction-tuned:")
        untuned_run = dataclasses.replace(run, model=ModelConfig(path=str(UNTUNED)))
        others = dataclasses.replace(
            experiment, run=untuned_run, paradigms=config.base_paradigms, against=config.base_paradigms[0]
        )
        runs.append(Finished(BASE, workdir / "base", run_experiment(others, workdir / "base", console)))
    _print_readers(task, console)
    if config.claims:
        untuned = {"bare": predict_untuned(run, UNINSTRUCTED), "instructed": predict_untuned(run, INSTRUCTED)}
        found = claims(read_measured(runs), read_measured(runs, _marked_whole), untuned)
        write_json(workdir / "claims.json", found)
        print_claims(found, console)

    console.print("4. One question, answered by the fused pair: the first test row where it mends what θ_β says.")
    cells = {row["paradigm"]: row["cell"] for row in sorted(results, key=_last_is_best)}
    bundle = workdir / "cells" / cells["fiat"] / "bundle"
    row = _mended(task, *(workdir / "predictions" / f"{cells[name]}.jsonl" for name in ("icl", "fiat")))
    told = {name: row[name] for name in task.fields} | ask_pair(bundle, native, row) | {"right": row["answer"]}
    lines = [f"   {what:<10} {text}" for what, text in told.items()]
    for line in lines:
        console.print(line, highlight=False, markup=False)

    page = _write_page(workdir / "results.html", results, lines)
    _print_next(workdir, bundle, page, time.monotonic() - begun, console)
    return results


def predict_untuned(run: Run, name: str) -> list[Prediction]:
    """Return what θ_τ answers to the reported rows before any step, reading what a paradigm lets it read."""
    paradigm = find_paradigm(name)
    bench = Bench(run, (0,), [paradigm])
    return predict_as_it_is(bench, Cell(paradigm, len(bench.train_rows), 0))


def ask_pair(bundle: Path, native: Native, row: Row) -> dict[str, str]:
    """Return what θ_β writes about a row, its answer, and that of the fused pair: as `fiat serve --bundle` does."""
    one_length = Serve(max_length=LONGEST, shortest_bucket=LONGEST, alternatives=0)  # for one question, few programs
    asked = Asked(one_length, {"fiat": read_bundle(str(bundle))}, native, None, None, MeshConfig())
    assembly = Assembly(asked, print)
    pair = assembly.load(Gate(1))["fiat"]
    assert isinstance(pair, Pair)

    async def ask() -> dict[str, str]:
        told: dict[str, str] = {"reasoning": "", "θ_β alone": "", "fused": ""}
        async for part in pair.stream({name: row[name] for name in pair.fields}, Usage()):
            if part.kind == "reasoning":
                told["reasoning"] += part.text
            elif part.kind == "answer":
                told["fused"] = part.text
            else:
                told["θ_β alone"] = str((part.details or {}).get("large_answer") or "none")
        return told

    assembly.driver.start()
    try:
        return asyncio.run(ask())
    finally:
        assembly.driver.close()


def as_gin(section: Any) -> Iterator[str]:
    """Yield the gin bindings that make a section and all within it."""
    names = {kind: name for name, kind in SECTIONS.items()}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if type(value) in names:
            yield from as_gin(value)
        else:
            yield f"{names[type(section)]}.{field.name} = {value!r}"


def _for_devices(train: TrainConfig) -> TrainConfig:
    """Return the same with batches that the machine's devices divide."""
    ways = jax.device_count()
    return dataclasses.replace(train, batch_rows=-(-train.batch_rows // ways) * ways)


def _last_is_best(row: Mapping[str, Any]) -> tuple[int, int]:
    """Return what sorts the cell of the most rows and the first seed last."""
    return row["size"] or 0, -(row["seed"] or 0)


def _marked_whole(one: Prediction) -> bool:
    """Return whether the answer is no name: of names the task's annotators mark the last word."""
    return not any(one.gold in second for _, second in NAME_WORDS.values())


def _print_readers(task: Task, console: Console) -> None:
    """Print what readers without a model make of the test rows, so that a task that gives itself away would show."""
    train, test = read_rows(task, "train")[:READ_BY_READERS], read_rows(task, "test")
    (metric,) = find_metrics(task.metrics)
    assert metric.per_row is not None
    gold = [row[task.answer_field] for row in test]
    scores = {name: np.mean(metric.per_row(gold, simple_answers(train, test, name))) for name in READERS}
    told = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
    console.print(f"   Simple readers of the same rows, {metric.name}: {told}.", highlight=False)


def _mended(task: Task, large: Path, fused: Path) -> Row:
    """Return the first test row that θ_β gets wrong and the pair right; the first of all where there is none."""
    wrong = {one.id for one in read_predictions(large) if one.gold != one.prediction}
    right = {one.id for one in read_predictions(fused) if one.gold == one.prediction}
    rows = read_rows(task, "test")
    return next((row for row in rows if row["id"] in wrong & right), rows[0])


def _write_page(path: Path, results: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> Path:
    """Write the tables and the question as a page."""
    page = Console(record=True, file=io.StringIO(), width=160)
    metric = results[0]["metric"]
    print_tables(
        page,
        table_of_scores(results, metric, f"{metric} in per cent, 95% intervals"),
        table_by_language(results, metric),
    )
    for line in asked:
        page.print(line, highlight=False, markup=False)
    page.save_html(str(path))
    return path


def _print_next(workdir: Path, bundle: Path, page: Path, seconds: float, console: Console) -> None:
    for line in (
        f"All of it took {seconds:.0f} s. A page: {page.resolve()}; figures: {workdir}/results.json, predictions/;",
        f"settings: {workdir}/config.gin; the tuned adapter: {bundle}",
        "Next, with your own rows and models (README.md):",
        "  fiat init YOUR_DATA.jsonl        # drafts a task and an instruction file",
        "  fiat reason --backend=native --gin_file=TASK.gin --gin.Native.path=LARGE_MODEL",
        "  fiat train --workdir=runs/mine --gin_file=TASK.gin --gin.Model.path=SMALL_MODEL",
        f"or serve this pair: fiat serve --bundle {bundle}",
    ):
        console.print(line, highlight=False, markup=False)
