"""What a training run leaves behind: trained weights, the instruction file, and the identities of both models."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fiat_jax.distributed import is_main
from fiat_jax.errors import UserError
from fiat_jax.experiments.feed import Feed, Reasons, rows_by_id
from fiat_jax.experiments.files import write_json
from fiat_jax.experiments.fit import scoring_rows
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Prompts, Reasoning, Run
from fiat_jax.models import peft
from fiat_jax.models.checkpoints import open_checkpoint, write_model
from fiat_jax.models.model import Model, ModelConfig, load_model, their_tensors
from fiat_jax.prompts.inline import inlined
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.remote import fetched
from fiat_jax.sharding import TRAIN, MeshConfig, ShardingRules
from fiat_jax.store import Provenance
from fiat_jax.tasks.task import Task

NAME = "bundle.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained θ_τ as `evaluate`, `predict` and `export` take it.

    `directory` holds prompts.yaml and either adapter/ or, where all weights were tuned, model/. `reasoning` names the
    set it was trained with, `sets` says what produced it, `asked` where θ_β was then; `seed` shuffles the rows' ŷ_β
    where the paradigm does; `own` are the paradigms that the user made; the hashes are of what it was trained with.
    """

    directory: Path
    task: Task
    prompts: Prompts
    paradigm: str
    seed: int
    model: ModelConfig
    reasoning: Reasoning
    theta_tau: str
    theta_beta: str
    answer_hash: str
    tokenizer: str
    length_normalise: bool
    row_length: int
    batch_rows: int
    adapter: bool
    sets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def provenance(self) -> Provenance | None:
        """What produced the reasoning that it was trained with; None where there was none."""
        held = self.sets.get(self.reasoning.set)
        return Provenance(**held) if held else None

    @property
    def theta_tau_path(self) -> str:
        """The directory of the model: its own where all weights were tuned, else that of the base."""
        return self.model.path if self.adapter else str(self.directory / "model")


def write_bundle(directory: Path, model: Model, feed: Feed, run: Run, reasons: Reasons) -> None:
    """Write adapter/ or model/, then prompts.yaml and bundle.json; every process of the run comes here."""
    if model.lora is not None:
        peft.save_adapter(model, directory / "adapter")
    else:
        write_model(directory / "model", their_tensors(model, model.weights()), model.hf_config, model.directory)
    if not is_main():
        return
    shutil.copyfile(fetched(run.prompts.file), directory / "prompts.yaml")
    bundle = Bundle(
        directory=Path(),
        task=run.task,
        prompts=dataclasses.replace(run.prompts, file="prompts.yaml"),
        paradigm=feed.paradigm.name,
        seed=run.train.seed,
        model=run.model,
        reasoning=dataclasses.replace(run.reasoning, set=reasons.set_key),
        theta_tau=model.fingerprint,
        theta_beta=reasons.model,
        answer_hash=feed.renderer.instructions.answer_hash,
        tokenizer=feed.renderer.identity,
        length_normalise=run.data.length_normalise,
        row_length=run.train.row_length,
        batch_rows=run.train.batch_rows,
        adapter=model.lora is not None,
        sets={} if reasons.provenance is None else {reasons.set_key: dataclasses.asdict(reasons.provenance)},
        asked=reasons.asked,
        own=run.own,
    )
    _write(directory, bundle)


def _write(directory: Path, bundle: Bundle) -> None:
    fields = dataclasses.asdict(bundle)
    del fields["directory"]
    write_json(directory / NAME, {"schema": SCHEMA, **fields})


def copy_bundle(bundle: Bundle, directory: Path) -> None:
    """Write a bundle anew where it needs neither its run nor, for its prompts, the task's rows.

    Raises:
        UserError: rows that serve as exemplars are no longer where the task says.
    """
    prompts = inlined(bundle.prompts.file, rows_by_id(bundle.task))
    if not is_main():
        return
    weights = "adapter" if bundle.adapter else "model"
    shutil.copytree(bundle.directory / weights, directory / weights)
    (directory / "prompts.yaml").write_text(prompts, "utf-8")
    _write(directory, dataclasses.replace(bundle, prompts=dataclasses.replace(bundle.prompts, file="prompts.yaml")))


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, or the one in a training run's working directory."""
    root = fetched(path)
    directory = root if (root / NAME).exists() else root / "bundle"
    try:
        held = json.loads((directory / NAME).read_text("utf-8"))
        return _parsed(directory, held)
    except FileNotFoundError:
        raise UserError(f"{root} holds no {NAME}; give the working directory of a finished `fiat train`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / NAME} is damaged or of another version: {error}") from None


def _parsed(directory: Path, held: Mapping[str, Any]) -> Bundle:
    if held["schema"] != SCHEMA:
        raise ValueError(f"its schema is {held['schema']}, and {SCHEMA} is read")
    fields: dict[str, Any] = {name: value for name, value in held.items() if name != "schema"}
    task: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held["task"].items()}
    fields |= {
        "task": Task(**task),
        "prompts": Prompts(**{**held["prompts"], "file": str(directory / held["prompts"]["file"])}),
        "model": ModelConfig(**held["model"]),
        "reasoning": Reasoning(**held["reasoning"]),
    }
    return Bundle(directory=directory, **fields)


def load_bundle_model(bundle: Bundle, mesh_config: MeshConfig, rules: ShardingRules = TRAIN) -> Model:
    """Return the trained model of a bundle on a mesh."""
    mesh = mesh_config.build()
    config = dataclasses.replace(bundle.model, path=bundle.theta_tau_path)
    with jax.set_mesh(mesh):
        if not bundle.adapter:
            return load_model(config, mesh, rules=rules)
        base = open_checkpoint(config.path)
        lora = peft.read_lora_config(bundle.directory / "adapter", base.family, base.config)
        model = load_model(config, mesh, lora=dataclasses.replace(lora, dropout=0.0), rules=rules)
        return dataclasses.replace(model, trainable=peft.load_adapter(model, bundle.directory / "adapter"))


def open_feed(bundle: Bundle) -> Feed:
    """Return how a bundle's rows are rendered: by the very tokenizer and instructions that it was trained with."""
    tokenizer = Tokenizer.from_directory(bundle.theta_tau_path)
    instructions = load_instructions(bundle.prompts.file)
    if instructions.answer_hash != bundle.answer_hash:
        raise UserError(f"{bundle.prompts.file} was changed after training; restore it, or train again with it")
    feed = Feed(bundle.task, instructions, tokenizer, bundle.prompts, find_paradigm(bundle.paradigm, bundle.own))
    if feed.renderer.identity != bundle.tokenizer:
        raise UserError(
            f"the tokenizer in {bundle.theta_tau_path}, or its chat template, is not the one that {bundle.directory} "
            "was trained with; restore it, or train again"
        )
    return feed


def open_bundle(bundle: Bundle, mesh_config: MeshConfig) -> Scorer:
    """Return the scorer of a bundle's model, which renders rows as in training."""
    feed = open_feed(bundle)
    model = load_bundle_model(bundle, mesh_config)
    return Scorer(model, feed, bundle.row_length, scoring_rows(bundle.batch_rows, model), bundle.length_normalise)
