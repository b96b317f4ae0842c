"""`fiat demo`: the whole line on a generated world, from its rows to a table and an answered question."""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from fiat_jax.data.examples import content_key
from fiat_jax.demo.theta_tau import ThetaTauConfig, make_theta_tau
from fiat_jax.demo.world import LABELS, SPLITS, World, WorldConfig
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments import runtime
from fiat_jax.experiments.answers import predict
from fiat_jax.experiments.bundle import read_bundle
from fiat_jax.experiments.matrix import run_experiment
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.experiments.spec import Data, Experiment, Prompts, Reasoning, Run
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.reasoning.importer import import_reasoning
from fiat_jax.sharding import MeshConfig
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Task, read_rows
from fiat_jax.training.config import TrainConfig

Rows = Sequence[Mapping[str, str]]

ROW_FIELDS = ("id", "lang", "context", "question", "answer")
REASONING_FIELDS = ("id", "reasoning", "large_answer")
THETA_BETA = "noisy oracle"
BUDGET = TrainConfig(epochs=3, min_steps=300, batch_rows=4)
PROMPTS = f"""\
version: 1
name: demo
fields: {{context: text, question: text}}

answer: # what the tuned model reads
  instructions: |
    Weigh the reasoning: {", ".join(LABELS[:-1])} or {LABELS[-1]}?
  template: |
    {{context}}
    {{question}}
    {{reasoning}}
    It may {{answer}}
  reasoning:
    full: "A model says {{answer}}: {{rationale}}"
    rationale: "A model says: {{rationale}}"
    answer: "A model says {{answer}}."
    none: ""
  truncate: [reasoning, context]
"""


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """The world, θ_τ, and the budget that every trained paradigm gets."""

    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)
    theta_tau: ThetaTauConfig = dataclasses.field(default_factory=ThetaTauConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    train: TrainConfig = BUDGET
    paradigms: tuple[str, ...] = ("icl", "finetune-lora", "fiat")
    learning_rates: tuple[float, ...] = (4e-3,)


def run_demo(workdir: Path, console: Console, config: DemoConfig | None = None) -> list[dict[str, Any]]:
    """Generate the world, import its reasoning, pretrain θ_τ, run the experiment and ask FIAT a question.

    Returns the rows of results.json. What is done already is not done again.
    """
    begun = time.monotonic()
    runtime.start()
    config = _for_devices(config or DemoConfig())
    world = World(config.world)
    rows, pages = {split: world.rows(split) for split in SPLITS}, list(world.stories())
    made = content_key(rows, pages, repr(config.theta_tau))[:8]
    console.print("1. A world: creatures, their homes, three languages; what does a creature do in which weather?")
    task, prompts, reasoning_file = _write_world(rows, workdir / "data")

    console.print("2. θ_τ: a tokenizer and a small Llama, pretrained on the world's stories.")
    theta_tau = workdir / f"theta_tau-{made}"
    seen = [text for row in rows["train"] for text in (row["context"], row["question"], row["reasoning"])]
    make_theta_tau(config.theta_tau, pages, seen, MeshConfig(), theta_tau, console)

    console.print("3. θ_β's reasoning, imported into the store.")
    store = ReasoningStore(workdir / "reasoning_store")
    read = [row for split in task.splits for row in read_rows(task, split)]
    mapping = {"rationale": "reasoning", "answer": "large_answer"}
    done = import_reasoning(task, read, reasoning_file, store, mapping=mapping, model=THETA_BETA, revision=made)
    console.print(f"   {done.written:,} rows written, {done.before:,} were there: set {done.set_key}", highlight=False)

    console.print("4. The experiment: θ_β alone, θ_τ tuned without it, and both fused.")
    experiment = Experiment(
        run=Run(
            task=task,
            prompts=Prompts(file=str(prompts)),
            reasoning=Reasoning(store=str(store.path), set=done.set_key),
            data=Data(report_split="test"),
            model=ModelConfig(path=str(theta_tau)),
            lora=config.lora,
            train=config.train,
            mesh=MeshConfig(),
        ),
        paradigms=config.paradigms,
        learning_rates=config.learning_rates,
    )
    runtime.write_config(workdir, "\n".join(as_gin(experiment)) + "\n")
    results = run_experiment(experiment, workdir, console)

    trained = next(row for row in results if row["paradigm"] == experiment.against)
    bundle = workdir / "cells" / trained["cell"] / "bundle"
    console.print("5. One question, answered by the FIAT bundle: the first of the test rows that θ_β gets wrong.")
    _ask(rows[experiment.run.data.report_split], bundle, workdir, console)
    _print_next(workdir, bundle, time.monotonic() - begun, console)
    return results


def as_gin(section: Any) -> Iterator[str]:
    """Yield the gin bindings that make a section and all within it."""
    names = {kind: name for name, kind in SECTIONS.items()}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if type(value) in names:
            yield from as_gin(value)
        else:
            yield f"{names[type(section)]}.{field.name} = {value!r}"


def _for_devices(config: DemoConfig) -> DemoConfig:
    """Return the configuration with batches that the machine's devices divide."""
    ways = jax.device_count()

    def fitted(train: TrainConfig) -> TrainConfig:
        return dataclasses.replace(train, batch_rows=-(-train.batch_rows // ways) * ways)

    theta_tau = dataclasses.replace(config.theta_tau, train=fitted(config.theta_tau.train))
    return dataclasses.replace(config, theta_tau=theta_tau, train=fitted(config.train))


def _write_world(rows: Mapping[str, Rows], directory: Path) -> tuple[Task, Path, Path]:
    """Write the splits, the instruction file, and θ_β's reasoning as a file of its own; return what names them."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {split: str(directory / f"{split}.jsonl") for split in SPLITS}
    for split, path in splits.items():
        _write_jsonl(Path(path), rows[split], ROW_FIELDS)
    _write_jsonl(directory / "reasoning.jsonl", [row for part in rows.values() for row in part], REASONING_FIELDS)
    (directory / "demo.yaml").write_text(PROMPTS)
    task = Task(name="demo", splits=splits, language_field="lang", fields=("context", "question"), labels=LABELS)
    return task, directory / "demo.yaml", directory / "reasoning.jsonl"


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({name: row[name] for name in fields}) + "\n" for row in rows))


def _ask(rows: Rows, bundle: Path, workdir: Path, console: Console) -> None:
    row = next(row for row in rows if row["large_answer"] != row["answer"])
    question, output = workdir / "question.jsonl", workdir / "answer.jsonl"
    _write_jsonl(question, [row], ROW_FIELDS[:-1])
    predict(read_bundle(bundle), str(question), None, MeshConfig(), output, console)
    answered = read_predictions(output)[0]
    for what, text in (
        ("context", row["context"]),
        ("question", row["question"]),
        ("reasoning", row["reasoning"]),
        ("θ_β alone", row["large_answer"]),
        ("FIAT", answered.prediction),
        ("right", row["answer"]),
    ):
        console.print(f"   {what:<10} {text}", highlight=False, markup=False)


def _print_next(workdir: Path, bundle: Path, seconds: float, console: Console) -> None:
    for line in (
        f"All of it took {seconds:.0f} s. Results: {workdir}/results.json, predictions/, cells/*/tensorboard;",
        f"settings: {workdir}/config.gin; the tuned adapter: {bundle}",
        "Next:",
        f"  fiat experiment --gin_file={workdir}/config.gin --workdir={workdir} "
        "--gin.Experiment.paradigms=\"('icl', 'finetune-lora', 'fiat', 'fiat-answer-only', 'fiat-shuffled')\"",
        f"  fiat export {bundle} --format=peft --out={workdir}/adapter",
        "  fiat init YOUR_DATA.jsonl        # drafts a task and an instruction file for your own rows",
    ):
        console.print(line, highlight=False, markup=False)
