"""`fiat evaluate`, `fiat predict` and `fiat export`: what a trained bundle is used for."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import write_predictions
from fiat_jax.evaluation.scores import score_predictions
from fiat_jax.experiments.bundle import Bundle, load_bundle_model, open_bundle
from fiat_jax.experiments.feed import Reasons, read_reasons
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.results import print_tables, table_by_language, table_of_scores, write_results
from fiat_jax.experiments.spec import Reasoning
from fiat_jax.models import peft
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.model import largest_logit_difference, merge, their_tensors, with_weights
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Row, read_rows

FORMATS = ("peft", "merged")
PROBE_TOKENS = (4, 64)


def reasons_of(bundle: Bundle, rows: list[Row], reasoning: Reasoning | None, source: str) -> Reasons:
    """Return the ŷ_β of rows from the bundle's reasoning set, or from the one named."""
    paradigm = find_paradigm(bundle.paradigm)
    if not paradigm.needs_reasoning:
        return Reasons({})
    where = reasoning or dataclasses.replace(bundle.reasoning, set=bundle.set_key)
    command = f"fiat reason --gin.Reasoning.store={where.store} ... with the rows of {source} as a split of the task"
    found = read_reasons(bundle.task, rows, where, command)
    return found.shuffled(rows, bundle.task, 0) if paradigm.shuffled else found


def evaluate(
    bundle: Bundle, splits: dict[str, str], split: str, reasoning: Reasoning | None, mesh: MeshConfig, workdir: Path,
    console: Console,
) -> list[dict]:  # fmt: skip
    """Score a bundle on a split, write results.json and predictions, print the table; return the result rows."""
    begun = time.monotonic()
    task = dataclasses.replace(bundle.task, splits={**bundle.task.splits, **splits})
    bundle = dataclasses.replace(bundle, task=task)
    rows = read_rows(task, split)
    reasons = reasons_of(bundle, rows, reasoning, task.splits[split])
    feed, scorer = open_bundle(bundle, mesh)
    predictions = scorer.prepare(rows, reasons).predict(scorer.model.trainable, bundle.prompts.max_new_tokens)
    name = f"{bundle.paradigm}-{split}"
    digest = write_predictions(workdir / "predictions" / f"{name}.jsonl", predictions)
    known = {
        "cell": name,
        "paradigm": bundle.paradigm,
        "theta_tau": bundle.model.path,
        "theta_beta": reasons.model or None,
        "task": task.name,
        "size": None,
        "seed": None,
        "split": split,
        "selected_on": None,
    }
    found = [{**known, **row} for row in score_predictions(task, rows, predictions)]
    inputs = {"bundle": str(bundle.directory), "data": task.splits[split], "predictions": {name: digest}}
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
    task = dataclasses.replace(bundle.task, splits={"input": source})
    rows = read_rows(task, "input", answers_required=False)
    reasons = reasons_of(bundle, rows, reasoning, source)
    _, scorer = open_bundle(dataclasses.replace(bundle, task=task), mesh)
    predictions = scorer.prepare(rows, reasons).predict(scorer.model.trainable, bundle.prompts.max_new_tokens)
    write_predictions(output, predictions)
    console.print(f"{len(predictions):,} predictions: {output}")
    return len(predictions)


def export(bundle: Bundle, form: str, output: Path, mesh: MeshConfig, console: Console) -> None:
    """Write the adapter in peft's layout, or the merged model in transformers', and say what merging changed."""
    if form not in FORMATS:
        raise UserError(f"unknown export format {form!r}; known are {', '.join(FORMATS)}")
    model = load_bundle_model(bundle, mesh)
    if form == "peft":
        if model.lora is None:
            raise UserError(f"{bundle.directory} was tuned in all weights and has no adapter; use --format=merged")
        peft.save_adapter(model, output)
        console.print(f"adapter: {output}")
        return
    if model.lora is not None:
        with jax.set_mesh(model.mesh):
            merged = with_weights(model, merge(model))
            tokens_BT = np.random.default_rng(0).integers(0, model.config.vocab_size, PROBE_TOKENS).astype(np.int32)
            difference = largest_logit_difference(model, merged, tokens_BT)
        console.print(f"largest logit difference between adapter and merged model on random tokens: {difference:.2e}")
        model = dataclasses.replace(merged, hf_config=model.hf_config)
    dtype = bundle.model.dtype
    hf_config = {**model.hf_config, "torch_dtype": dtype, "dtype": dtype}
    write_model(output, their_tensors(model, model.weights(), dtype), hf_config, bundle.model.path)
    console.print(f"merged model: {output}")


def read_splits(pairs: list[str]) -> dict[str, str]:
    """Return split → source of "name=source" arguments."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--data {pair}: expected NAME=FILE, such as test=data/test.jsonl")
    return dict(pair.split("=", 1) for pair in pairs)
