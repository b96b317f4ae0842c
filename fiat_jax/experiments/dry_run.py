"""`--dry_run` of train and experiment: the first example with its mask, parameters, memory; nothing is trained."""

import dataclasses

import jax
import numpy as np
from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.experiments.cells import Bench
from fiat_jax.experiments.feed import Feed
from fiat_jax.experiments.fit import check_tokenizer, select_split
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.spec import Run
from fiat_jax.models.model import load_model
from fiat_jax.prompts.show import show_rendered
from fiat_jax.sharding import check_batch
from fiat_jax.training.step import TrainState, train_step


def dry_run(run: Run, console: Console) -> None:
    """Print the first rendered example with tokens and loss mask, parameter counts, steps and the memory estimate."""
    paradigm = find_paradigm(run.paradigm)
    bench = Bench(run, (0,), [paradigm])
    feed = Feed(bench.task, bench.instructions, bench.tokenizer, run.prompts, paradigm)
    kept, held = select_split(bench.task, run, bench.train_rows)
    first = feed.render(kept[0], bench.reasons, with_target=True)
    show_rendered(first, bench.tokenizer, console)
    mesh = run.mesh.build()
    with jax.set_mesh(mesh):
        model = load_model(run.model, mesh, lora=run.lora if paradigm.lora else None, seed=run.train.seed)
        check_tokenizer(bench.tokenizer, model)
        check_batch(mesh, model.build.rules, run.train.batch_rows, run.train.accumulate)
        trained, frozen = model.num_parameters()
        rendered = ((row, feed.render(row, bench.reasons, with_target=True)) for row in kept)
        ids = run.task.id_field
        examples = Examples.of(
            Example(row[ids], run.task.language(row), r.inputs, r.target, r.dropped) for row, r in rendered
        )
        batches = TrainBatches(examples, run.train.row_length, run.train.batch_rows, run.train.seed)
        num_steps = batches.num_steps(run.train.epochs_of(batches.num_steps(1)))
        optimizer = run.train.optimizer.build(num_steps)
        state = TrainState(jax.numpy.int32(0), model.trainable, jax.eval_shape(optimizer.init, model.trainable))

        def step(state, frozen, batch):
            key = jax.random.key(0) if model.build.slots and run.lora.dropout else None
            return train_step(
                state, frozen, batch,
                loss_fn=model.loss, optimizer=optimizer, parts=run.train.accumulate, dropout_key=key,
            )  # fmt: skip

        memory = jax.jit(step).lower(state, model.frozen, batches.batch(0)).compile().memory_analysis()
    tokens = int(np.sum(examples.inputs.lengths) + np.sum(examples.targets.lengths))
    console.print(f"rows: {len(kept):,} to train on, {len(held):,} to select by, {len(bench.report_rows):,} reported")
    console.print(f"parameters: {trained:,} trained, {frozen:,} frozen")
    console.print(
        f"steps: {num_steps:,} of {run.train.batch_rows} × {run.train.row_length} tokens; "
        f"{tokens:,} real tokens an epoch; cut by the length budget: {examples.truncations() or 'nothing'}"
    )
    mebibytes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes,
    }
    parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in mebibytes.items())
    console.print(f"memory of one step in MiB a device, as compiled: {parts}")


def runs_of(run: Run, paradigms: tuple[str, ...]) -> Run:
    """Return the run whose dry run stands for an experiment: FIAT's, or the first trained one's."""
    trained = [name for name in paradigms if find_paradigm(name).trained]
    chosen = "fiat" if "fiat" in trained else next(iter(trained), run.paradigm)
    return dataclasses.replace(run, paradigm=chosen)
