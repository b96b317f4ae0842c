"""Checkpoints of sizes and options that nobody chose, against transformers: FIAT_RANDOM_SEEDS="7 8 9" draws others."""

import os
import random
from typing import Any

import jax
import numpy as np
import pytest
from support.texts import engine_texts, full_pass_texts

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.models.model import ModelConfig, load_model, logits
from fiat_jax.sharding import MeshConfig

pytestmark = pytest.mark.slow
SEEDS = [int(seed) for seed in os.environ.get("FIAT_RANDOM_SEEDS", "0 1 2 3 4 5").split()]
ARCHITECTURES = [
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"),
    *("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM"),
]


def a_rope(draw: random.Random, length: int) -> dict[str, Any]:
    theta = draw.choice([100.0, 1e4, 5e5])
    original = draw.randint(4, length)
    return draw.choice(
        [
            {"rope_type": "default", "rope_theta": theta},
            {"rope_type": "linear", "rope_theta": theta, "factor": draw.uniform(1.5, 8)},
            {"rope_type": "dynamic", "rope_theta": theta, "factor": draw.uniform(1.5, 8)},
            {
                "rope_type": "yarn",
                "rope_theta": theta,
                "factor": draw.uniform(2, 8),
                "original_max_position_embeddings": original,
                "beta_fast": draw.choice([8.0, 32.0]),
            },
            {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": draw.uniform(2, 8),
                "original_max_position_embeddings": original,
                "low_freq_factor": 1.0,
                "high_freq_factor": draw.choice([2.0, 4.0]),
            },
        ]
    )


def options_of(architecture: str, draw: random.Random) -> dict[str, Any]:
    kv_heads, head_dim, layers = draw.choice([1, 2, 3]), draw.choice([4, 8, 10]), draw.randint(1, 9)
    heads, length = kv_heads * draw.choice([1, 2, 4]), draw.choice([24, 48, 64])
    found: dict[str, Any] = {
        "vocab_size": draw.choice([40, 41, 97]),
        "hidden_size": heads * (head_dim if architecture == "Phi3ForCausalLM" else draw.choice([4, 8])),
        "intermediate_size": 4 * draw.randint(3, 10),  # torch multiplies experts in steps of 16 bytes
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": length,
        "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": draw.random() < 0.5,
        "max_shard_size": draw.choice(["1GB", "8KB"]),
        "dtype": draw.choice(["float32", "float32", "bfloat16", "float16"]),
    }
    window = draw.choice([1, 3, 7, 100])
    some = lambda **entries: {name: value for name, value in entries.items() if draw.random() < 0.5}  # noqa: E731
    match architecture:
        case "LlamaForCausalLM":
            found |= some(attention_bias=True, mlp_bias=True, hidden_act="gelu_new")
        case "MistralForCausalLM":
            found |= {"sliding_window": draw.choice([None, window])}
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM":
            found |= some(use_sliding_window=True, sliding_window=window)
            found |= {"max_window_layers": draw.randint(0, layers)}
            found |= some(attention_bias=True) if architecture.startswith("Qwen3") else {}
        case "GemmaForCausalLM":
            pass
        case "Gemma2ForCausalLM" | "Gemma3ForCausalLM":
            found |= {"sliding_window": window, "query_pre_attn_scalar": draw.choice([4, 9])}
            found |= some(final_logit_softcapping=draw.uniform(1, 30))
            found |= some(layer_types=[draw.choice(["sliding_attention", "full_attention"]) for _ in range(layers)])
            if architecture.startswith("Gemma2"):
                found |= some(attn_logit_softcapping=draw.uniform(1, 30))
        case "Phi3ForCausalLM":
            found |= {"sliding_window": draw.choice([None, window])}
        case "MixtralForCausalLM":
            found |= {"num_local_experts": draw.randint(3, 9), "num_experts_per_tok": draw.randint(1, 3)}
            found |= {"sliding_window": draw.choice([None, window])}
        case "Qwen3MoeForCausalLM":
            found |= {"num_experts": draw.randint(3, 9), "num_experts_per_tok": draw.randint(1, 3)}
            found |= {"moe_intermediate_size": 4 * draw.randint(2, 5), "norm_topk_prob": draw.random() < 0.5}
            found |= some(attention_bias=True)
    if architecture == "Gemma3ForCausalLM":
        local = {"rope_type": "default", "rope_theta": draw.choice([50.0, 1e4])}
        found["rope_parameters"] = {"sliding_attention": local, "full_attention": a_rope(draw, length)}
    elif architecture != "Phi3ForCausalLM":
        found["rope_parameters"] = a_rope(draw, length)
    elif draw.random() < 0.7:
        pairs, original = head_dim // 2, draw.randint(4, length)
        factors = {name: [draw.uniform(1, 4) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
        found["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
        found["original_max_position_embeddings"] = original
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_those_of_transformers(architecture, seed, write_checkpoint, reference, one_device):
    draw = random.Random(f"{architecture} {seed}")
    options = options_of(architecture, draw)
    directory = write_checkpoint(architecture, seed=seed, **options)
    lengths = (draw.randint(1, 8), draw.randint(30, 70))
    model = load_model(ModelConfig(str(directory)), one_device)
    for length in lengths:
        tokens_BT = np.random.default_rng(seed).integers(0, options["vocab_size"], (2, length)).astype(np.int32)
        expected = reference(directory, tokens_BT)
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(logits(model, tokens_BT))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(ours, expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=str(options))


def turned_by_length(options: dict[str, Any]) -> bool:
    """Whether some layer turns positions by the length of the whole text."""
    ropes = options.get("rope_parameters", {})
    kinds = [ropes.get("rope_type"), *(rope["rope_type"] for rope in ropes.values() if isinstance(rope, dict))]
    return bool({"dynamic", "longrope"} & set(kinds))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_writes_the_same_behind_a_shared_prefix_on_any_mesh(
    architecture, seed, write_checkpoint, one_device
):
    draw, rng = random.Random(f"engine of {architecture} {seed}"), np.random.default_rng(seed)
    options = options_of(architecture, draw)
    count, longest = draw.randint(2, 8), 20
    prefix = rng.integers(0, options["vocab_size"], draw.randint(1, 70)).tolist()
    if not turned_by_length(options):
        options["max_position_embeddings"] = 128
    directory = write_checkpoint(architecture, seed=seed, **options | {"dtype": "float32"})
    prompts = [rng.integers(0, options["vocab_size"], draw.randint(1, longest)).tolist() for _ in range(7)]
    whole = [prefix + prompt for prompt in prompts]

    model = load_model(ModelConfig(str(directory)), one_device)
    expected = engine_texts(model, whole, count, block=draw.randint(1, 5))
    if not turned_by_length(options):
        assert expected == full_pass_texts(model, whole, count)

    mesh = draw.choice([MeshConfig(1, 1, 1), MeshConfig(2, 1, 1), MeshConfig(1, 1, 2), MeshConfig(2, 2, 2)])
    model = load_model(ModelConfig(str(directory)), mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]))
    rows = mesh.data * mesh.fsdp
    shapes = EngineConfig(
        slots=rows * draw.randint(1, 3),
        slot_length=longest + count,
        prefix_length=len(prefix),
        block=draw.randint(1, 5),
        prefill_rows=rows,
        shortest_bucket=draw.choice([4, 16, 32]),
    )
    if turned_by_length(options):  # of a whole text, so that texts of two lengths share no prefix
        with pytest.raises(UserError, match="share no prefix"):
            Engine(model, -1, shapes)
        return
    engine = Engine(model, -1, shapes)
    key = engine.add_prefix(prefix)
    found = engine.generate([Request(tuple(prompt), count, prefix=key) for prompt in prompts])
    assert [list(one.tokens) for (one,) in found] == expected, (options, mesh, shapes)
