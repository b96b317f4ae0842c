"""`--dry_run` of train and experiment: the first example with its mask, parameters, memory; nothing is trained."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.cells import check_cells
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.experiments.paradigms import find_paradigm, find_paradigms
from fiat_jax.experiments.spec import Run
from fiat_jax.models.model import Model, load_model
from fiat_jax.prompts.show import show_rendered
from fiat_jax.tasks.task import Row
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.program import abstract_batch, abstract_state, jit_step

SIZES = {"arguments": "argument_size_in_bytes", "temporaries": "temp_size_in_bytes", "results": "output_size_in_bytes"}


def dry_run(run: Run, console: Console, sizes: Sequence[int] = (0,)) -> None:
    """Print the first rendered example with tokens and loss mask, parameter counts, steps and the memory estimate."""
    paradigm = find_paradigm(run.paradigm, run.own)
    bench = Bench(run, sizes, [paradigm])
    console.print(f"{paradigm.name}: {len(bench.report_rows):,} {run.data.report_split} rows are reported")
    if not paradigm.trained:
        return
    cell = Cell(paradigm, len(bench.train_rows), run.train.seed)
    check_cells([(bench, cell)])
    feed, (kept, held), reasons = bench.feed(cell), bench.split(cell), bench.reasons_for(cell, bench.train_rows)
    show_rendered(feed.render(kept[0], reasons, with_target=True), bench.tokenizer, console)
    examples = _examples(feed, kept, reasons)
    batches = TrainBatches(examples, run.train.row_length, run.train.batch_rows, run.train.seed, feed.layout)
    num_steps = batches.num_steps(run.train.epochs_of(batches.num_steps(1)))
    tokens = int(np.sum(examples.inputs.lengths) + np.sum(examples.targets.lengths))
    mesh = run.mesh.build()
    with jax.set_mesh(mesh):
        model = load_model(run.model, mesh, lora=run.lora if paradigm.lora else None, seed=run.train.seed)
        trained, frozen = model.num_parameters()
        console.print(f"rows: {len(kept):,} to train on, {len(held):,} to select by")
        console.print(f"parameters: {trained:,} trained, {frozen:,} frozen; attention: {model.build.kernel}")
        console.print(
            f"steps: {num_steps:,} of {run.train.batch_rows} × {run.train.row_length} tokens; "
            f"{tokens:,} real tokens an epoch; cut by the length budget: {examples.truncations() or 'nothing'}"
        )
        console.print(_memory(model, batches, run.train, num_steps))


def _examples(feed: Feed, rows: list[Row], reasons: Reasons) -> Examples:
    rendered = ((row, feed.render(row, reasons, with_target=True)) for row in rows)
    ids, language = feed.task.id_field, feed.task.language
    return Examples.of(Example(row[ids], language(row), r.inputs, r.target, r.dropped) for row, r in rendered)


def _memory(model: Model, batches: TrainBatches, config: TrainConfig, num_steps: int) -> str:
    """Return what the compiled step needs, which is compiled for it and not run."""
    optimizer = config.optimizer.build(num_steps)
    state, batch = abstract_state(model, optimizer), abstract_batch(model, batches.batch(0))
    compiled = jit_step(model, config, optimizer).lower(state, model.frozen, batch).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        return "memory of one step: this backend does not say"
    parts = ", ".join(f"{name} {getattr(memory, size) / 2**20:,.1f}" for name, size in SIZES.items())
    return f"memory of one step in MiB a device, as compiled: {parts}"


def runs_of(run: Run, paradigms: tuple[str, ...]) -> Run:
    """Return the run whose dry run stands for an experiment: FIAT's, or the first trained one's."""
    named = find_paradigms(paradigms, run.own)
    trained = [paradigm.name for paradigm in named if paradigm.trained]
    chosen = "fiat" if "fiat" in trained else next(iter(trained), named[0].name)
    return dataclasses.replace(run, paradigm=chosen)
