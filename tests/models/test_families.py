"""Checkpoints that transformers writes, read by us: equal logits, whatever the options."""

import json
import shutil

import numpy as np
import pytest

from fiat_jax.errors import UserError
from fiat_jax.models.checkpoints import read_config
from fiat_jax.models.families import family_of
from fiat_jax.models.model import ModelConfig, load_model, logits

OPTIONS = {
    "grouped heads, tied head": {"tie_word_embeddings": True},
    "a key head for every query head": {"num_key_value_heads": 4},
    "one key head, heads wider than their share": {"num_key_value_heads": 1, "head_dim": 10},
    "another base of positions, another epsilon": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0},
        "rms_norm_eps": 0.1,
    },
    "shards": {"max_shard_size": "8KB"},
    "shards, tied head": {"max_shard_size": "8KB", "tie_word_embeddings": True},
    "a bfloat16 file": {"dtype": "bfloat16"},
    "a float16 file": {"dtype": "float16"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_equal_those_of_transformers(options, write_checkpoint, reference, one_device, tokens):
    directory = write_checkpoint(**options)
    assert len(list(directory.glob("*.safetensors"))) > 1 or "max_shard_size" not in options
    ours = logits(load_model(ModelConfig(str(directory)), one_device), tokens)
    np.testing.assert_allclose(ours, reference(directory, tokens), atol=1e-4)


def test_logits_equal_those_of_transformers_on_a_real_checkpoint(shared_data, reference, one_device):
    directory = shared_data / "weights" / "tinystories-656k"
    tokens_BT = np.random.default_rng(0).integers(0, 2048, (2, 500)).astype(np.int32)
    ours = logits(load_model(ModelConfig(str(directory)), one_device), tokens_BT)
    np.testing.assert_allclose(ours, reference(directory, tokens_BT), atol=1e-4)


def read(directory):
    hf_config = read_config(directory)
    return family_of(hf_config, str(directory)).read_config(hf_config, str(directory))


@pytest.fixture
def rewrite(checkpoint, tmp_path):
    """Return a copy of a checkpoint whose config.json has some entries replaced; None takes an entry out."""

    def rewrite(**entries):
        directory = shutil.copytree(checkpoint, tmp_path / "copy", dirs_exist_ok=True)
        hf_config = json.loads((checkpoint / "config.json").read_text()) | entries
        kept = {name: value for name, value in hf_config.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(kept))
        return directory

    return rewrite


def test_old_and_new_spellings_of_a_config_are_one(rewrite, checkpoint):
    assert "rope_parameters" in read_config(checkpoint)
    new = read(rewrite(rope_parameters={"rope_type": "default", "rope_theta": 77.0}, dtype="float32"))
    old = read(rewrite(rope_parameters=None, rope_theta=77.0, rope_scaling=None, torch_dtype="float32", dtype=None))
    assert new == old
    assert new.reaches[0].rope.theta == 77.0


def test_what_an_old_config_leaves_out_is_what_transformers_takes(rewrite, reference, one_device, tokens, checkpoint):
    directory = rewrite(
        rope_parameters=None, head_dim=None, attention_bias=None, mlp_bias=None, hidden_act=None, rms_norm_eps=None
    )
    ours = logits(load_model(ModelConfig(str(directory)), one_device), tokens)
    np.testing.assert_allclose(ours, reference(directory, tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architectures": ["LamaForCausalLM"]}, "LamaForCausalLM.*Did you mean 'LlamaForCausalLM'"),
        ({"architectures": None}, "names architecture none"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'.*'silu'"),
        ({"rope_parameters": {"rope_type": "llama4", "rope_theta": 1e4}}, "rope type 'llama4'.*mean 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "'longrope' with 0 numbers in short_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias"),
        ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_a_config_that_we_cannot_follow_is_refused(entries, said, rewrite, one_device):
    with pytest.raises(UserError, match=f"(?s)config.json.*{said}"):
        load_model(ModelConfig(str(rewrite(**entries))), one_device)


@pytest.mark.parametrize(
    ("architecture", "entries"),
    [
        ("MixtralForCausalLM", {}),
        ("Phi3ForCausalLM", {}),
        ("MistralForCausalLM", {"num_key_value_heads": 8, "num_attention_heads": 8}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": None}),
        ("GemmaForCausalLM", {"hidden_act": "silu"}),
        ("Gemma3ForCausalLM", {"rope_theta": 777.0, "rope_local_base_freq": 55.0, "sliding_window_pattern": 2}),
        ("Gemma3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 7}),
        ("LlamaForCausalLM", {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    ],
)
def test_what_a_file_leaves_out_is_what_transformers_takes(
    architecture, entries, write_checkpoint, reference, one_device
):
    """An old file, or a short one: only its sizes and the entries named are left."""
    kept = ("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok")
    kept += ("tie_word_embeddings", "max_position_embeddings")
    sizes = {name: entries[name] for name in ("num_key_value_heads", "num_attention_heads") if name in entries}
    extra = {"num_local_experts": 4} if architecture.startswith("Mixtral") else {}
    directory = write_checkpoint(architecture, head_dim=8, intermediate_size=12, pad_token_id=0, **sizes, **extra)
    written = json.loads((directory / "config.json").read_text())
    short = {name: written[name] for name in kept if name in written} | {"pad_token_id": 0} | entries
    (directory / "config.json").write_text(json.dumps(short))
    tokens_BT = np.random.default_rng(0).integers(1, 40, (2, 30)).astype(np.int32)
    ours = logits(load_model(ModelConfig(str(directory)), one_device), tokens_BT)
    np.testing.assert_allclose(ours, reference(directory, tokens_BT), atol=2e-4)


def test_a_family_is_found_wherever_it_is_named(rewrite, one_device):
    directory = rewrite(architectures=["SomethingElse", "LlamaForCausalLM"])
    assert load_model(ModelConfig(str(directory)), one_device).family.name == "llama"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5; for this architecture we read 1.0 alone"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope type 'linear' without 'factor'"),
    ],
)
def test_what_transformers_reads_otherwise_is_refused(entries, said, rewrite, one_device):
    with pytest.raises(UserError, match=said):
        load_model(ModelConfig(str(rewrite(**entries))), one_device)


def test_a_tied_head_that_differs_from_the_embedding_is_refused(write_checkpoint, one_device):
    directory = write_checkpoint(tie_word_embeddings=False)
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the files hold two that differ; set its tie_word_embeddings to false"):
        load_model(ModelConfig(str(directory)), one_device)
