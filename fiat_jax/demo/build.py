"""`fiat demo build`: the demo's tokenizer and three checkpoints, made from nothing by the training loop."""

import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples, content_key
from fiat_jax.data.layout import Batch, DecoderLayout, Passages
from fiat_jax.data.packing import Plan
from fiat_jax.demo.families import Families, Part
from fiat_jax.demo.languages import languages
from fiat_jax.demo.world import PRETRAINING, Teller
from fiat_jax.experiments import runtime
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.families import family_of
from fiat_jax.models.model import Model, random_model, their_tensors
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.loop import train
from fiat_jax.training.optimizer import OptimizerConfig

BOS, EOS = "<s>", "</s>"
VOCABULARY = 2048
HELD_OUT = 200  # texts that are not trained on: the best weights are chosen by them
TOKENIZER_TEXTS = 20_000
MAX_LENGTH = 1024
SHOTS = (0, 1, 2, 3, 3)  # exemplars before an item that is asked


@dataclasses.dataclass(frozen=True)
class Stage:
    """How many texts are drawn, and how they are trained on, each once."""

    texts: int
    train: TrainConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model: its size, its two stages, and whether it learns to write thoughts or to read them.

    Args:
        layers: of each, whether it attends to the last `WINDOW` positions or to all: "sliding_attention" or
            "full_attention".
    """

    name: str
    width: int
    layers: tuple[str, ...]
    num_heads: int
    mlp_width: int
    pretraining: Stage
    tuning: Stage
    thinks: bool


def stage(texts: int, learning_rate: float, row_length: int = 288, batch_rows: int = 8) -> Stage:
    """Return a stage that warms up and then slows down to nothing."""
    optimizer = OptimizerConfig(learning_rate, "linear", warmup=0.05, weight_decay=0.05, b2=0.98, algorithm="muon")
    return Stage(texts, TrainConfig(1, 0, batch_rows, row_length, checkpoint_every=500, optimizer=optimizer))


NEAR, FAR = "sliding_attention", "full_attention"  # kinds of layers, as config.json names them
WINDOW = 8  # positions that a near layer sees: within a fact
RECIPES = (
    Recipe("demo-L", 192, (NEAR, FAR, NEAR, FAR), 3, 512, stage(24_000, 4e-3), stage(12_000, 2e-3, 480, 4), True),
    Recipe("demo-XS", 96, (NEAR, FAR, FAR), 3, 256, stage(40_000, 5e-3), stage(32_000, 3e-3, 512, 4), False),
)


def build(workdir: Path, console: Console, recipes: Iterable[Recipe] = RECIPES, seed: int = 0) -> None:
    """Write WORKDIR/NAME and WORKDIR/NAME-base for each recipe; what is there already is not made again."""
    runtime.start()
    begun = time.monotonic()
    pieces = workdir / "tokenizer"
    if not pieces.exists():
        draw = random.Random(f"{seed} tokenizer")
        families = Families(draw, languages(), Teller(draw, PRETRAINING))
        texts = ("".join(part.text for part in families.page()) for _ in range(TOKENIZER_TEXTS))
        _write_tokenizer(texts, VOCABULARY, pieces)
    tokenizer = Tokenizer.from_directory(pieces)
    for recipe in recipes:
        _build_one(recipe, tokenizer, pieces, workdir, seed, console)
    console.print(f"all models are in {workdir}, after {time.monotonic() - begun:.0f} s", highlight=False)


def _build_one(recipe: Recipe, tokenizer: Tokenizer, pieces: Path, workdir: Path, seed: int, console: Console) -> None:
    hf_config = _hf_config(recipe, tokenizer)
    family = family_of(hf_config, recipe.name)
    mesh = MeshConfig().build()
    with jax.set_mesh(mesh):
        model = random_model(family.read_config(hf_config, recipe.name), mesh, seed=seed, family=family)
        for name, stage, made in (
            (f"{recipe.name}-base", recipe.pretraining, pretraining_examples),
            (recipe.name, recipe.tuning, tuning_examples),
        ):
            examples = made(tokenizer, stage.texts, seed, recipe.thinks)
            model = _train(model, examples, stage.train, workdir / f"{name}.training", name, console)
            if not (workdir / name).exists():
                scratch = workdir / f"{name}.unfinished"
                weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.weights())
                write_model(scratch, their_tensors(model, weights), hf_config, pieces)
                os.replace(scratch, workdir / name)


def _train(model: Model, examples: Examples, config: TrainConfig, workdir: Path, name: str, console: Console) -> Model:
    """Return a model trained on all but the first examples, with the weights that those like best."""
    held, seen = (
        TrainBatches(examples.take(part), config.row_length, config.batch_rows, config.seed, PartsLayout)
        for part in (range(HELD_OUT), range(HELD_OUT, len(examples)))
    )
    loss = jax.jit(model.loss)

    def evaluate(trainable) -> dict[str, float]:
        batches = [held.batch(step) for step in range(held.num_steps(1))]
        total = sum(float(loss(trainable, model.frozen, batch)) for batch in batches)
        return {"log_likelihood": -total / sum(float(np.sum(batch["weights"])) for batch in batches)}

    trained = train(
        model,
        seen,
        config,
        workdir,
        evaluate=evaluate,
        select="log_likelihood",
        facts={"examples": content_key(*(part.values.tolist() for part in (examples.inputs, examples.targets)))},
        listeners=listeners_for(workdir, name, console),
    )
    return dataclasses.replace(model, trainable=trained.trainable)


@dataclasses.dataclass(frozen=True)
class PartsLayout(DecoderLayout):
    """Decoder rows whose targets are learnt in part: those that are only read are given as ~id, and weigh nothing."""

    def assemble(self, passages: Passages, plan: Plan, rows: range, num_rows: int, capacity: Sequence[int]) -> Batch:
        """See `DecoderLayout`."""
        batch = super().assemble(passages, plan, rows, num_rows, capacity)
        ids = {name: np.where(batch[name] < 0, ~batch[name], batch[name]) for name in ("tokens", "targets")}
        return {**batch, **ids, "weights": np.where(batch["targets"] < 0, np.float32(0), batch["weights"])}


def pretraining_examples(tokenizer: Tokenizer, count: int, seed: int, thinks: bool) -> Examples:
    """Return texts without instructions, for `PartsLayout`."""
    draw = random.Random(f"{seed} pretraining")
    families = Families(draw, languages(), Teller(draw, PRETRAINING))
    return Examples.of(_example(f"page {n}", families.page(), tokenizer) for n in range(count))


def tuning_examples(tokenizer: Tokenizer, count: int, seed: int, thinks: bool) -> Examples:
    """Return prompts with instructions, for `PartsLayout`."""
    draw = random.Random(f"{seed} tuning {thinks}")
    families = Families(draw, languages(), Teller(draw, PRETRAINING))
    modes = ("think",) if thinks else ("read", "direct")
    prompts = (families.prompt(draw.choice(SHOTS), modes) for _ in range(count))
    return Examples.of(_example(f"prompt {n}", parts, tokenizer) for n, parts in enumerate(prompts))


def _example(row_id: str, parts: Sequence[Part], tokenizer: Tokenizer) -> Example:
    ids = [np.array(tokenizer.encode(part.text), np.int32) for part in parts]
    first = 0 if parts[0].learnt else 1  # what is read before anything is learnt
    read = np.array([tokenizer.bos_id], np.int32)
    rest = [found if part.learnt else ~found for found, part in zip(ids[first:], parts[first:], strict=True)]
    end = np.array([tokenizer.eos_id], np.int32)
    return Example(row_id, "und", np.concatenate([read, *ids[:first]]), np.concatenate([*rest, end]))


def _write_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    begin = (BOS, backend.token_to_id(BOS))
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{BOS} $A", special_tokens=[begin]
    )
    scratch = directory.with_name(directory.name + ".unfinished")
    scratch.mkdir(parents=True, exist_ok=True)
    backend.save(str(scratch / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    (scratch / "tokenizer_config.json").write_text(json.dumps(about, indent=2))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(scratch, directory)


def _hf_config(recipe: Recipe, tokenizer: Tokenizer) -> Mapping[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": recipe.width,
        "num_hidden_layers": len(recipe.layers),
        "layer_types": list(recipe.layers),
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_heads,
        "intermediate_size": recipe.mlp_width,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": "bfloat16",
    }
