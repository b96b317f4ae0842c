"""Adapters in peft's layout: equal logits with the real peft in both directions, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fiat_jax.errors import UserError
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model, logits
from fiat_jax.models.peft import CONFIG, WEIGHTS, adapter_fingerprint, load_adapter, read_lora_config, save_adapter

OURS = {
    "all layers": LoraConfig(rank=4, alpha=8),
    "rsLoRA": LoraConfig(rank=4, alpha=3, rslora=True),
    "names": LoraConfig(rank=4, targets=("q_proj", "mlp.down_proj")),
    "some layers": LoraConfig(rank=4, targets=r"model\.layers\.[02]\.(self_attn\.(k|o)_proj|mlp\.up_proj)"),
    "the embedding too": LoraConfig(rank=4, targets=("embed_tokens", "v_proj"), rank_pattern={"embed_tokens": 3}),
    "ranks and alphas by layer": LoraConfig(
        rank=4,
        rank_pattern={"layers.0.self_attn.q_proj": 2, r"2\.mlp\..*": 7},
        alpha_pattern={"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 50},
    ),
}
THEIRS = {
    "all layers": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rsLoRA, dropout": {"r": 4, "lora_alpha": 3, "use_rslora": True, "lora_dropout": 0.3, "target_modules": ["v_proj"]},
    "a regular expression": {"r": 3, "target_modules": r".*\.[12]\.self_attn\.(q|o)_proj"},
    "layers by number": {"r": 3, "target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "layers left out": {"r": 3, "target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.1.mlp.up_proj"]},
    "ranks and alphas by layer": {
        "r": 4,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers\.[12]\.mlp\.up_proj": 6},
        "alpha_pattern": {"v_proj": 40, "layers.2.self_attn.q_proj": 1},
    },
    "the embedding too": {"r": 3, "target_modules": ["embed_tokens", "q_proj"]},
    "another initialisation": {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}


@pytest.fixture(scope="module")
def untied(write_checkpoint):
    return write_checkpoint()


def read(adapter, base, mesh):
    plain = load_model(ModelConfig(str(base)), mesh)
    model = load_model(ModelConfig(str(base)), mesh, lora=read_lora_config(adapter, plain.family, plain.config))
    return dataclasses.replace(model, trainable=load_adapter(model, adapter))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # the head does not read the adapter, as here
@pytest.mark.parametrize("lora", OURS.values(), ids=OURS)
def test_peft_gives_our_logits_with_our_adapter(lora, checkpoint, one_device, filled, reference, tokens, tmp_path):
    model = filled(load_model(ModelConfig(str(checkpoint)), one_device, lora=lora), std=0.2)
    save_adapter(model, tmp_path)
    ours, base = logits(model, tokens), reference(checkpoint, tokens)
    assert np.abs(ours - base).max() > 0.5
    np.testing.assert_allclose(ours, reference(checkpoint, tokens, tmp_path), atol=1e-4)
    again = read(tmp_path, checkpoint, one_device)
    jax.tree.map(np.testing.assert_array_equal, again.trainable, model.trainable)
    np.testing.assert_allclose(logits(again, tokens), ours, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # the head does not read the adapter, as here
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("options", THEIRS.values(), ids=THEIRS)
def test_our_logits_are_those_of_peft_with_its_adapter(options, checkpoint, by_peft, one_device, reference, tokens):
    adapter = by_peft(checkpoint, **options)
    ours, base = logits(read(adapter, checkpoint, one_device), tokens), reference(checkpoint, tokens)
    assert np.abs(ours - base).max() > 0.1
    np.testing.assert_allclose(ours, reference(checkpoint, tokens, adapter), atol=1e-4)


def test_an_adapter_from_one_mesh_loads_on_another(
    checkpoint, one_device, eight_devices, filled, reference, tokens, tmp_path
):
    lora = OURS["ranks and alphas by layer"]
    model = filled(load_model(ModelConfig(str(checkpoint)), eight_devices, lora=lora), std=0.2)
    save_adapter(model, tmp_path)
    again = read(tmp_path, checkpoint, one_device)
    jax.tree.map(np.testing.assert_array_equal, again.trainable, model.trainable)


def test_only_the_ranks_in_use_are_written(checkpoint, one_device, filled, tmp_path):
    lora = OURS["ranks and alphas by layer"]
    save_adapter(filled(load_model(ModelConfig(str(checkpoint)), one_device, lora=lora)), tmp_path)
    shapes = {name: array.shape for name, array in load_file(tmp_path / WEIGHTS).items()}
    layers = "base_model.model.model.layers"
    assert shapes[f"{layers}.0.self_attn.q_proj.lora_A.weight"] == (2, 16)
    assert shapes[f"{layers}.0.self_attn.q_proj.lora_B.weight"] == (16, 2)
    assert shapes[f"{layers}.2.mlp.down_proj.lora_A.weight"] == (7, 24)
    assert shapes[f"{layers}.1.self_attn.k_proj.lora_B.weight"] == (8, 4)
    assert len(shapes) == 3 * 7 * 2


def test_other_trained_arrays_than_the_models_own_can_be_written(checkpoint, one_device, filled, tmp_path):
    model = load_model(ModelConfig(str(checkpoint)), one_device, lora=LoraConfig(targets=("q_proj",)))
    save_adapter(model, tmp_path / "fresh")
    save_adapter(model, tmp_path / "trained", filled(model).trainable)
    assert adapter_fingerprint(tmp_path / "fresh") != adapter_fingerprint(tmp_path / "trained")
    assert all(array.any() for array in load_file(tmp_path / "trained" / WEIGHTS).values())


def test_half_precision_adapters_load(checkpoint, by_peft, one_device):
    adapter = by_peft(checkpoint, target_modules=["q_proj"])
    whole = {name: array.astype("bfloat16") for name, array in load_file(adapter / WEIGHTS).items()}
    save_file(whole, adapter / WEIGHTS)
    a = read(adapter, checkpoint, one_device).trainable["blocks"]["q"]["a"].get_value()
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a[0].T, whole["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's own doubts about some of them
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            "lm_head.*, which this model lacks; it has down_proj, embed_tokens",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_we_do_not_compute_is_refused(options, said, untied, by_peft, one_device):
    adapter = by_peft(untied, **({"target_modules": ["q_proj"]} | options))
    with pytest.raises(UserError, match=said):
        read(adapter, untied, one_device)


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft saves the table beside the adapter, and says so
def test_a_table_that_is_not_the_bases_own_is_refused(untied, by_peft, one_device):
    adapter = by_peft(untied, target_modules=["embed_tokens"])
    tensors = load_file(adapter / WEIGHTS)
    (table,) = (name for name in tensors if name.endswith("base_layer.weight"))
    save_file(tensors | {table: tensors[table] + 0.01}, adapter / WEIGHTS)
    with pytest.raises(UserError, match="that is not the base's"):
        read(adapter, untied, one_device)


@pytest.fixture
def adapter(checkpoint, one_device, tmp_path):
    model = load_model(ModelConfig(str(checkpoint)), one_device, lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    save_adapter(model, tmp_path)
    return tmp_path


def test_an_adapter_made_for_another_base_is_refused(adapter, checkpoint, write_checkpoint, one_device):
    other = write_checkpoint(tie_word_embeddings=True, seed=5)
    with pytest.raises(UserError, match=rf"was trained on '{checkpoint}' \(fingerprint .*not on '{other}'"):
        read(adapter, other, one_device)
    (adapter / "fiat_adapter.json").unlink()
    read(adapter, other, one_device)  # peft's own adapters do not say

    wider = write_checkpoint(tie_word_embeddings=True, hidden_size=20, head_dim=4)
    with pytest.raises(UserError, match=r"\.q_proj\.lora_A\.weight is \(2, 16\), this model needs \(2, 20\)"):
        read(adapter, wider, one_device)
    shallower = write_checkpoint(tie_word_embeddings=True, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"adapts model\.layers\.1\.self_attn\.q_proj \(and 3 more\)"):
        read(adapter, shallower, one_device)


def test_an_adapter_with_another_rank_than_its_config_says_is_refused(adapter, checkpoint, one_device):
    content = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(content | {"r": 3}))
    with pytest.raises(UserError, match=r"lora_A\.weight is \(2, 16\), this model needs \(3, 16\).*another rank"):
        read(adapter, checkpoint, one_device)


def test_an_adapter_for_other_layers_than_the_model_was_built_with_is_refused(adapter, checkpoint, one_device):
    for targets in (("q_proj",), ("q_proj", "v_proj", "k_proj")):
        model = load_model(ModelConfig(str(checkpoint)), one_device, lora=LoraConfig(rank=2, targets=targets))
        with pytest.raises(UserError, match=r"do not adapt the same layers; they differ in model\.layers\.0\.self"):
            load_adapter(model, adapter)


def test_a_damaged_adapter_is_named(adapter, checkpoint, one_device):
    def said(match):
        with pytest.raises(UserError, match=match):
            read(adapter, checkpoint, one_device)

    whole, tensors = (adapter / WEIGHTS).read_bytes(), load_file(adapter / WEIGHTS)
    lost = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    save_file({name: array for name, array in tensors.items() if name != lost}, adapter / WEIGHTS)
    said(r"missing model\.layers\.1\.self_attn\.v_proj\.lora_B\.weight")
    (adapter / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    said(f"{WEIGHTS} is cut short or damaged")
    (adapter / WEIGHTS).unlink()
    said(f"has no {WEIGHTS}")
    (adapter / CONFIG).write_text("{")
    said(f"{CONFIG} is not readable JSON")
    (adapter / CONFIG).write_text('{"peft_type": "IA3"}')
    said("of type 'IA3'; we read LORA")
    (adapter / CONFIG).unlink()
    said(f"has no {CONFIG}")
