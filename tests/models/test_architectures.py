"""Every family against transformers, every option of it shown to matter; longer than windows and original lengths."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from support.texts import engine_texts

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.models import model as models
from fiat_jax.models.checkpoints import read_config, write_model
from fiat_jax.models.config import Reach
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model, logits, merge, their_tensors, with_weights
from fiat_jax.models.peft import load_adapter, read_lora_config, save_adapter
from fiat_jax.models.rope import Rope

PLAIN = (Reach(),)
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 12}
FACTORS = {"short_factors": (1.1, 1.7), "long_factors": (3.0, 5.0)}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1, 1.7], "long_factor": [3.0, 5.0]}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4},
    "yarn, its transition elsewhere": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1e3,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "truncate": False,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 1e4,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
# architecture, its options, and what they are when switched off in our configuration
CASES = {
    "llama, biased": (
        "LlamaForCausalLM",
        {"attention_bias": True, "mlp_bias": True},
        [{"biased": frozenset("qkvo")}, {"biased": frozenset({"gate", "up", "down"})}],
    ),
    **{
        f"llama, {name}": (
            "LlamaForCausalLM",
            {"rope_parameters": rope, "max_position_embeddings": 24, "head_dim": 8},
            [{"reaches": (Reach(rope=Rope(theta=rope["rope_theta"])),)}],
        )
        for name, rope in ROPES.items()
    },
    "mistral": ("MistralForCausalLM", {"sliding_window": 7}, [{"reaches": PLAIN}]),
    "mistral, no window": ("MistralForCausalLM", {"sliding_window": None}, []),
    "qwen2": ("Qwen2ForCausalLM", {}, [{"biased": frozenset("qk")}, {"biased": frozenset("kv")}]),
    "qwen2, windows in its upper layers": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        [{"reaches": PLAIN, "layer_reaches": ()}, {"layer_reaches": (1, 1, 1)}],
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 8}, [{"qk_norm": False}]),
    "qwen3, biased": ("Qwen3ForCausalLM", {"head_dim": 8, "attention_bias": True}, [{"biased": frozenset()}]),
    "gemma": (
        "GemmaForCausalLM",
        {"head_dim": 8},
        [{"norm_offset": 0.0}, {"embed_scale": 1.0}, {"activation": "silu"}],
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
        [
            *({"sandwich": False}, {"query_scale": None}, {"attention_cap": None}, {"logit_cap": None}),
            *({"reaches": PLAIN, "layer_reaches": ()}, {"layer_reaches": (1, 0, 1)}, {"norm_offset": 0.0}),
            *({"embed_scale": 1.0}, {"activation": "silu"}),
        ],
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 8,
            "sliding_window": 7,
            "num_hidden_layers": 8,
            "query_pre_attn_scalar": 5,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            },
        },
        [
            {"qk_norm": False},
            {"layer_reaches": (0,) * 8},
            {"reaches": (Reach(7, Rope(theta=1e4)), Reach(None, Rope("linear", 1e4, factor=8.0)))},
            {"reaches": (Reach(None, Rope(theta=100.0)), Reach(None, Rope("linear", 1e4, factor=8.0)))},
            {"reaches": (Reach(7, Rope(theta=100.0)), Reach(None, Rope(theta=1e4)))},
        ],
    ),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 7}, [{"reaches": PLAIN}]),
    "phi3, stretched, heads turned in part": (
        "Phi3ForCausalLM",
        {
            "head_dim": 8,
            "hidden_size": 32,
            "rope_parameters": LONG | {"partial_rotary_factor": 0.5},
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
        },
        [
            {"reaches": (Reach(rope=Rope("longrope", share=0.5, original_length=99, **FACTORS)),)},
            {"reaches": (Reach(rope=Rope(share=0.5)),)},
        ],
    ),
    "mixtral": (
        "MixtralForCausalLM",
        EXPERTS | {"num_local_experts": 5, "sliding_window": 7},
        [{"experts_per_token": 1}, {"normalised_experts": False}, {"reaches": PLAIN}],
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        EXPERTS | {"num_experts": 6, "moe_intermediate_size": 12, "head_dim": 8, "norm_topk_prob": True},
        [{"experts_per_token": 3}, {"normalised_experts": False}, {"qk_norm": False}],
    ),
    "qwen3-moe, weights as they are": (
        "Qwen3MoeForCausalLM",
        EXPERTS | {"num_experts": 6, "moe_intermediate_size": 12, "norm_topk_prob": False},
        [{"normalised_experts": True}],
    ),
}


@pytest.fixture(scope="module")
def long_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, (2, 40)).astype(np.int32)


def switched(model, **fields):
    """Return the model with some settings replaced; weights that it then lacks are left out."""
    config = dataclasses.replace(model.config, **fields)
    _, abstract = models.abstract_state(config, model.build, model.mesh)
    wanted = {path for path, _ in nnx.to_flat_state(abstract)}
    kept = [(path, value) for path, value in nnx.to_flat_state(model.frozen) if path in wanted]
    kept += [(path, value) for path, value in nnx.to_flat_state(model.trainable) if path in wanted]
    return models._assemble(config, model.family, model.mesh, model.build, nnx.from_flat_state(kept), None)


@pytest.mark.parametrize(("architecture", "options", "off"), CASES.values(), ids=CASES)
def test_logits_equal_those_of_transformers(
    architecture, options, off, write_checkpoint, reference, one_device, long_tokens
):
    directory = write_checkpoint(architecture, **options)
    model = load_model(ModelConfig(str(directory)), one_device)
    ours = np.asarray(logits(model, long_tokens))
    np.testing.assert_allclose(ours, reference(directory, long_tokens), atol=1e-4)
    for fields in off:
        changed = np.abs(np.asarray(logits(switched(model, **fields), long_tokens)) - ours).max()
        assert changed > 1e-2, fields


# one of each layout of tensors and of each thing that a token's place in its sequence decides
SOME = [
    *("llama, biased", "llama, dynamic", "mistral", "qwen3", "gemma2", "gemma3"),
    *("phi3, stretched, heads turned in part", "mixtral", "qwen3-moe"),
]


@pytest.fixture(scope="module", params=SOME)
def some(request, write_checkpoint):
    architecture, options, _ = CASES[request.param]
    return write_checkpoint(architecture, **options)


def test_greedy_text_is_that_of_transformers(some, one_device):
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(some, dtype=torch.float32)
    prompts = [np.random.default_rng(i).integers(0, 40, length).astype(np.int32) for i, length in enumerate((25, 30))]
    if theirs.config.rope_parameters.get("rope_type") == "dynamic":
        pytest.skip("transformers keeps keys that were turned for a shorter text; we turn all keys for the whole text")
    ours = engine_texts(load_model(ModelConfig(str(some)), one_device), prompts, 12)
    for prompt, text in zip(prompts, ours, strict=True):
        ids, options = torch.tensor(prompt[None]), {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert text == expected[0, len(prompt) :].tolist()


def test_the_text_of_a_row_does_not_depend_on_what_shares_its_batch(some, one_device):
    """Lengths around a window, an original length and a padded one."""
    model = load_model(ModelConfig(str(some)), one_device)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 40, length).astype(np.int32) for length in (9, 40, 13, 18, 2)]
    prompts = [prompt for prompt in prompts if len(prompt) + 6 <= model.config.max_length]
    other = {"slots": 1, "prefill_rows": 1, "shortest_bucket": 24}
    assert engine_texts(model, prompts, 6, slots=2) == engine_texts(model, prompts, 6, alone=True, **other)


def test_packed_rows_give_the_loss_of_the_rows_alone(some, one_device):
    model = load_model(ModelConfig(str(some)), one_device)
    rng = np.random.default_rng(0)
    parts = [np.split(rng.integers(0, 40, n).astype(np.int32), [n - 3]) for n in (25, 9, 14)]
    examples = [Example(str(i), "en", *part) for i, part in enumerate(parts)]

    def losses(rows):
        batches = TrainBatches(Examples.of(rows), 64, 1, seed=0)
        return float(jax.jit(model.loss)(model.trainable, model.frozen, batches.batch(0)))

    np.testing.assert_allclose(losses(examples), sum(losses([example]) for example in examples), rtol=1e-5)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def adaptable(directory):
    """All linear layers, of a mixture of experts those of attention."""
    return list(ATTENTION) if "num_experts_per_tok" in read_config(directory) else "all-linear"


def test_adapters_of_peft_come_in_and_go_out_and_merge(some, one_device, by_peft, reference, long_tokens, tmp_path):
    adapter = by_peft(some, r=3, lora_alpha=5, target_modules=adaptable(some))
    plain = load_model(ModelConfig(str(some)), one_device)
    lora = read_lora_config(adapter, plain.family, plain.config)
    model = load_model(ModelConfig(str(some)), one_device, lora=lora)
    model = dataclasses.replace(model, trainable=load_adapter(model, adapter))
    expected = reference(some, long_tokens, adapter)
    assert np.abs(expected - np.asarray(logits(plain, long_tokens))).max() > 0.1
    np.testing.assert_allclose(logits(model, long_tokens), expected, atol=1e-4)
    save_adapter(model, tmp_path / "adapter")
    np.testing.assert_allclose(reference(some, long_tokens, tmp_path / "adapter"), expected, atol=1e-5)
    merged = with_weights(model, merge(model))
    write_model(tmp_path / "merged", their_tensors(merged, merged.weights(), "float32"), model.hf_config, some)
    np.testing.assert_allclose(reference(tmp_path / "merged", long_tokens), expected, atol=1e-4)


def test_all_linear_means_the_layers_that_peft_adapts_but_experts(some, one_device, by_peft):
    adapter = by_peft(some, r=3, target_modules=adaptable(some))
    plain = load_model(ModelConfig(str(some)), one_device)
    theirs = read_lora_config(adapter, plain.family, plain.config).targets
    ours = load_model(ModelConfig(str(some)), one_device, lora=LoraConfig(rank=3))
    modules = ours.family.modules(ours.config)
    assert {path for name, _ in ours.build.slots for path in modules[name]} == set(theirs)


# `make test` has one with windows, caps and norms on both sides, and one with experts; test_meshes.py has more layouts
DIVIDED = [pytest.param(name, marks=[] if name in ("gemma2", "qwen3-moe") else [pytest.mark.slow]) for name in SOME]


@pytest.mark.parametrize("some", DIVIDED, indirect=True)
def test_on_eight_devices_the_loss_and_its_gradients_are_those_of_one(some, one_device, eight_devices):
    rng, found = np.random.default_rng(0), []
    examples = [Example(str(i), "en", *np.split(rng.integers(0, 40, 15).astype(np.int32), [10])) for i in range(8)]
    batch = TrainBatches(Examples.of(examples), 16, 8, seed=0).batch(0)
    for mesh in (one_device, eight_devices):
        with jax.set_mesh(mesh):
            model = load_model(ModelConfig(str(some)), mesh)
            loss, grads = jax.jit(jax.value_and_grad(model.loss))(model.trainable, model.frozen, batch)
        found.append((float(loss), jax.tree.map(np.asarray, grads)))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, atol=1e-3 * np.abs(one).max()), *found)
