"""What a training run leaves behind: trained weights, the instruction file, and the identities of both models."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax

from fiat_jax.errors import UserError
from fiat_jax.experiments.feed import Feed
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.results import write_json
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Prompts, Reasoning, Run
from fiat_jax.models import peft
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.model import Model, ModelConfig, load_model, their_tensors
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Task

NAME = "bundle.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained θ_τ as `evaluate`, `predict` and `export` take it."""

    directory: Path
    task: Task
    prompts: Prompts
    paradigm: str
    model: ModelConfig
    reasoning: Reasoning
    set_key: str
    length_normalise: bool
    row_length: int
    batch_rows: int
    adapter: bool


def write_bundle(directory: Path, model: Model, feed: Feed, run: Run, set_key: str, theta_beta: str) -> None:
    """Write adapter/ (or, where all weights were tuned, model/), prompts.yaml and bundle.json."""
    directory.mkdir(parents=True, exist_ok=True)
    if model.lora is not None:
        peft.save_adapter(model, directory / "adapter")
    else:
        tensors = their_tensors(model, model.weights())
        write_model(directory / "model", tensors, model.hf_config, model.directory)
    shutil.copyfile(run.prompts.file, directory / "prompts.yaml")
    task = dataclasses.asdict(run.task)
    write_json(
        directory / NAME,
        {
            "schema": SCHEMA,
            "task": task,
            "prompts": {**dataclasses.asdict(run.prompts), "file": "prompts.yaml"},
            "answer_hash": feed.renderer.instructions.answer_hash,
            "tokenizer": feed.tokenizer.fingerprint,
            "paradigm": feed.paradigm.name,
            "model": dataclasses.asdict(run.model),
            "theta_tau": model.fingerprint,
            "theta_beta": theta_beta,
            "reasoning": dataclasses.asdict(run.reasoning),
            "set": set_key,
            "length_normalise": run.data.length_normalise,
            "row_length": run.train.row_length,
            "batch_rows": run.train.batch_rows,
            "adapter": model.lora is not None,
        },
    )


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, or the one in a training run's working directory."""
    root = Path(path)
    directory = root if (root / NAME).exists() else root / "bundle"
    try:
        held = json.loads((directory / NAME).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{root} holds no {NAME}; give the working directory of a finished `fiat train`") from None
    task = {k: tuple(v) if isinstance(v, list) else v for k, v in held["task"].items()}
    return Bundle(
        directory=directory,
        task=Task(**task),
        prompts=Prompts(**{**held["prompts"], "file": str(directory / held["prompts"]["file"])}),
        paradigm=held["paradigm"],
        model=ModelConfig(**held["model"]),
        reasoning=Reasoning(**held["reasoning"]),
        set_key=held["set"],
        length_normalise=held["length_normalise"],
        row_length=held["row_length"],
        batch_rows=held["batch_rows"],
        adapter=held["adapter"],
    )


def load_bundle_model(bundle: Bundle, mesh_config: MeshConfig) -> Model:
    """Return the trained model of a bundle on a mesh."""
    mesh = mesh_config.build()
    with jax.set_mesh(mesh):
        if not bundle.adapter:
            return load_model(dataclasses.replace(bundle.model, path=str(bundle.directory / "model")), mesh)
        base = load_model(bundle.model, mesh)
        lora = peft.read_lora_config(bundle.directory / "adapter", base.family, base.config)
        model = load_model(bundle.model, mesh, lora=dataclasses.replace(lora, dropout=0.0))
        return dataclasses.replace(model, trainable=peft.load_adapter(model, bundle.directory / "adapter"))


def open_bundle(bundle: Bundle, mesh_config: MeshConfig) -> tuple[Feed, Scorer]:
    """Return how a bundle's rows are rendered, and the scorer of its model."""
    model = load_bundle_model(bundle, mesh_config)
    feed = Feed(
        bundle.task,
        load_instructions(bundle.prompts.file),
        Tokenizer.from_directory(bundle.model.path),
        bundle.prompts,
        find_paradigm(bundle.paradigm),
    )
    ways = model.mesh.size
    rows = -(-2 * bundle.batch_rows // ways) * ways
    return feed, Scorer(model, feed, bundle.row_length, rows, bundle.length_normalise)
