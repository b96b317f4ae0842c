"""Tiny checkpoints written by transformers, every parameter random, and the models that read them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from support.louder import louder

from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import random_model
from fiat_jax.sharding import MeshConfig


@pytest.fixture(autouse=True)
def quick_compilation():
    """Programs that run once compile in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def one_device():
    return MeshConfig(1, 1, 1).build(jax.devices()[:1])


@pytest.fixture(scope="session")
def eight_devices():
    return MeshConfig(data=2, fsdp=2, tensor=2).build()


@pytest.fixture(scope="session")
def tiny() -> DecoderConfig:
    return DecoderConfig(
        vocab_size=40,
        width=16,
        num_layers=3,
        num_kv_heads=2,
        queries_per_kv_head=2,
        head_dim=8,
        mlp_width=24,
        max_length=64,
    )


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, (4, 22)).astype(np.int32)


@pytest.fixture(scope="session")
def write_checkpoint(tmp_path_factory):
    """Write a random model of an architecture with transformers and return its directory."""

    def write(
        architecture: str = "LlamaForCausalLM",
        *,
        dtype: str = "float32",
        max_shard_size: str = "1GB",
        seed: int = 0,
        **options,
    ) -> Path:
        import torch
        import transformers

        sizes = {
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": None,
        }
        model_class = getattr(transformers, architecture)
        model = model_class(model_class.config_class(**(sizes | options)))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():  # none left as it starts: fresh biases are 0, fresh norms 1
            parameter.data.normal_(generator=generator, std=0.3)
            if parameter.ndim == 1 and not architecture.startswith("Gemma"):  # whose gains are stored less 1
                parameter.data += 1
        directory = tmp_path_factory.mktemp("checkpoint")
        model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
        return directory

    return write


@pytest.fixture(scope="session")
def checkpoint(write_checkpoint) -> Path:
    return write_checkpoint(tie_word_embeddings=True)


@pytest.fixture(scope="session")
def reference():
    """Return the float32 logits that transformers gives, with the adapter that peft puts on if one is named."""

    def logits(directory: Path, tokens_BT: np.ndarray, adapter: Path | None = None) -> np.ndarray:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        with torch.no_grad():
            return model(torch.tensor(tokens_BT)).logits.numpy()

    return logits


@pytest.fixture(scope="session")
def by_peft(tmp_path_factory):
    """Write an adapter with the real peft, its factors random."""

    def write(base, **options):
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(generator=generator, std=0.2)
        directory = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(directory)
        return directory

    return write


@pytest.fixture(scope="session")
def filled():
    """Return the model with random adapters, as training leaves them: zero beyond each layer's own rank."""

    def fill(model, seed: int = 0, std: float = 0.3):
        rng, slots, flat = np.random.default_rng(seed), dict(model.build.slots), []
        for path, variable in nnx.to_flat_state(model.trainable):
            old = variable.get_value()
            new = rng.normal(size=old.shape, scale=std).astype(np.float32)
            stacked = len(path) > 2  # the embedding is not, nor is it padded
            ranks = slots[".".join(path[:-1])].ranks if stacked else ()
            for layer, rank in enumerate(ranks):
                padding = new[layer, ..., rank:] if path[-1] == "a" else new[layer, rank:]
                padding[...] = 0
            flat.append((path, variable.replace(jax.device_put(new, old.sharding))))
        return dataclasses.replace(model, trainable=nnx.from_flat_state(flat))

    return fill


@pytest.fixture(scope="session")
def decoder(tiny, one_device):
    """A random model on one device, its weights large enough for every path to matter."""

    def build(**options):
        return louder(random_model(tiny, one_device, **options), 10)

    return build
