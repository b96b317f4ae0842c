"""θ_τ of the demo: a tokenizer and a small Llama, made from the world's stories, as a Hugging Face directory."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model, random_model, their_tensors
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.loop import train
from fiat_jax.training.optimizer import OptimizerConfig

BOS, EOS = "<s>", "</s>"
HELD_OUT = 100  # pages that are not trained on: the best weights are chosen by them
PRETRAINING = TrainConfig(epochs=4, batch_rows=8, row_length=128, optimizer=OptimizerConfig(learning_rate=4e-3))


@dataclasses.dataclass(frozen=True)
class ThetaTauConfig:
    """The sizes of θ_τ, and its pretraining."""

    vocab_size: int = 640
    width: int = 96
    num_layers: int = 2
    num_heads: int = 4
    mlp_width: int = 256
    max_length: int = 256
    train: TrainConfig = PRETRAINING


def make_theta_tau(
    config: ThetaTauConfig, pages: Sequence[str], words: Iterable[str], mesh: MeshConfig, path: Path, console: Console
) -> None:
    """Write θ_τ to `path`, unless it is there: a tokenizer of `pages` and `words`, weights pretrained on `pages`.

    A killed pretraining goes on where it was.
    """
    if path.exists():
        return
    scratch = path.with_name(path.name + ".unfinished")
    pieces = scratch / "pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    _write_tokenizer([*pages, *words], config.vocab_size, pieces)
    tokenizer = Tokenizer.from_directory(pieces)
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        width=config.width,
        num_layers=config.num_layers,
        num_kv_heads=config.num_heads,
        queries_per_kv_head=1,
        head_dim=config.width // config.num_heads,
        mlp_width=config.mlp_width,
        max_length=config.max_length,
        tied_head=True,
    )
    model = _pretrain(decoder, config.train, pages, tokenizer, mesh, pieces, console)
    write_model(scratch, their_tensors(model, model.weights()), _hf_config(decoder, tokenizer), pieces)
    shutil.rmtree(pieces)
    os.replace(scratch, path)


def _pretrain(
    decoder: DecoderConfig,
    config: TrainConfig,
    pages: Sequence[str],
    tokenizer: Tokenizer,
    mesh: MeshConfig,
    workdir: Path,
    console: Console,
) -> Model:
    """Return a model trained on all but the first pages, with the weights that those pages like best."""
    held, seen = (_batches(part, tokenizer, config) for part in (pages[:HELD_OUT], pages[HELD_OUT:]))
    built = mesh.build()
    with jax.set_mesh(built):
        model = random_model(decoder, built, seed=config.seed)
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
            facts={"tokenizer": tokenizer.fingerprint},
            listeners=listeners_for(workdir, "pretraining of θ_τ", console),
        )
    return dataclasses.replace(model, trainable=trained.trainable)


def _batches(pages: Sequence[str], tokenizer: Tokenizer, config: TrainConfig) -> TrainBatches:
    start = tokenizer.bos_id
    examples = Examples.of(
        Example(f"page {n}", "und", np.array([start], np.int32), np.array([*ids, tokenizer.eos_id], np.int32))
        for n, ids in enumerate(map(tokenizer.encode, pages))
    )
    return TrainBatches(examples, config.row_length, config.batch_rows, config.seed)


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
    backend.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    (directory / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


def _hf_config(decoder: DecoderConfig, tokenizer: Tokenizer) -> Mapping[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_kv_heads * decoder.queries_per_kv_head,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.mlp_width,
        "max_position_embeddings": decoder.max_length,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.reaches[0].rope.theta,
        "tie_word_embeddings": decoder.tied_head,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": "float32",
    }
