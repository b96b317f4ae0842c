"""A model as what is trained and what is frozen: LoRA, full tuning, merging, and what a gradient step costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fiat_jax.errors import UserError
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.linear import LoraScale, Weight
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import (
    ModelConfig,
    largest_logit_difference,
    load_model,
    logits,
    merge,
    random_model,
    their_tensors,
    with_weights,
)

UNEVEN = LoraConfig(
    rank=3,
    alpha=6,
    targets=("q_proj", "up_proj"),
    rank_pattern={"layers.1.self_attn.q_proj": 5, "0.mlp.up_proj": 1},
)


def batch_of(tokens_BT):
    B, T = tokens_BT.shape
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    targets = {
        "target_positions": positions,
        "targets": np.roll(tokens_BT, -1, 1),
        "weights": np.ones((B, T), np.float32),
    }
    return {
        "tokens": tokens_BT,
        "positions": positions,
        "segments": positions * 0 + 1,
        "branches": positions * 0,
    } | targets


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_fresh_adapter_changes_nothing(checkpoint, one_device, tokens):
    base = load_model(ModelConfig(str(checkpoint)), one_device)
    for lora in (LoraConfig(rslora=True, dropout=0.5), UNEVEN):
        model = load_model(ModelConfig(str(checkpoint)), one_device, lora=lora)
        np.testing.assert_allclose(logits(model, tokens), logits(base, tokens), atol=1e-5)
        same(model.weights(), base.weights())


def test_another_seed_draws_another_adapter_over_the_same_base(checkpoint, one_device):
    first, again, other = (
        load_model(ModelConfig(str(checkpoint)), one_device, lora=LoraConfig(targets=("q_proj",)), seed=seed)
        for seed in (0, 0, 1)
    )
    same(first.trainable, again.trainable)
    same(first.frozen, other.frozen)
    a, b = (np.asarray(model.trainable["blocks"]["q"]["a"].get_value()) for model in (first, other))
    assert not np.isclose(a, b).any()


def test_an_adapter_is_drawn_the_same_on_every_mesh(tiny, one_device, eight_devices):
    drawn = [random_model(tiny, mesh, lora=UNEVEN).trainable for mesh in (one_device, eight_devices)]
    same(*drawn)


def test_full_tuning_trains_every_weight_and_lora_none(tiny, one_device):
    weights, (q, k, mlp) = 2 * 40 * 16 + 16 + 3 * 2 * 16, (16 * 32, 16 * 16, 16 * 24)
    weights += 3 * (2 * q + 2 * k + 3 * mlp)
    full = random_model(tiny, one_device)
    assert full.num_parameters() == (weights, 0)
    assert jax.tree.leaves(full.frozen) == []
    lora = random_model(tiny, one_device, lora=LoraConfig(rank=2, targets=("q_proj", "down_proj")))
    assert lora.num_parameters() == (3 * 2 * (16 + 32 + 24 + 16), weights)
    assert jax.tree.structure(full.trainable) == jax.tree.structure(nnx.filter_state(lora.frozen, Weight))


def test_gradients_and_optimizer_state_are_of_the_adapters_alone(tiny, one_device, tokens):
    model = random_model(tiny, one_device, lora=LoraConfig(rank=2, targets=("v_proj",)))
    grads = jax.jit(jax.grad(model.loss))(model.trainable, model.frozen, batch_of(tokens))
    assert [path for path, _ in nnx.to_flat_state(grads)] == [("blocks", "v", "a"), ("blocks", "v", "b")]
    moments = optax.adamw(1e-3).init(model.trainable)
    assert sum(x.size for x in jax.tree.leaves(moments)) == 2 * model.num_parameters()[0] + 1


def test_padding_to_a_common_rank_stays_exactly_zero_in_training(decoder, tokens):
    model, optimizer = decoder(lora=UNEVEN), optax.adamw(0.05, weight_decay=0.1)

    @jax.jit
    def step(trainable, state):
        grads = jax.grad(model.loss)(trainable, model.frozen, batch_of(tokens))
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state

    trainable, state = model.trainable, optimizer.init(model.trainable)
    for _ in range(5):
        trainable, state = step(trainable, state)
    slots = dict(model.build.slots)
    assert slots["blocks.q"].ranks == (3, 5, 3)
    assert slots["blocks.up"].ranks == (1, 3, 3)
    for (*place, part), variable in nnx.to_flat_state(trainable):
        array = np.asarray(variable.get_value())
        for layer, rank in enumerate(slots[".".join(place)].ranks):
            used, padding = np.split(array[layer], [rank], axis=-1 if part == "a" else 0)
            assert (np.abs(used) > 0).all()
            assert (padding == 0).all()


def test_dropout_changes_the_loss_only_where_a_key_is_given(tiny, one_device, filled, tokens):
    lora = LoraConfig(rank=2, targets=("up_proj",))
    plain = filled(random_model(tiny, one_device, lora=lora))
    dropping = filled(random_model(tiny, one_device, lora=dataclasses.replace(lora, dropout=0.5)))
    losses, batch = [jax.jit(model.loss) for model in (plain, dropping)], batch_of(tokens)
    expected = losses[0](plain.trainable, plain.frozen, batch)
    arguments = (dropping.trainable, dropping.frozen, batch)
    np.testing.assert_allclose(losses[1](*arguments), expected, rtol=1e-6)
    first, again, other = (losses[1](*arguments, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again
    assert len({float(expected), float(first), float(other)}) == 3


def test_the_weight_gradient_of_frozen_weights_is_never_computed(tiny, one_device):
    """A step costs 4 N operations a token under LoRA and 6 N in full tuning, N weights being multiplied with.

    The compiled program's own count has the body of the scan over layers once, so N is one layer's and the head's.
    """
    B, T = 8, 6
    config = dataclasses.replace(tiny, vocab_size=128, width=64, head_dim=16, mlp_width=160)
    layer, adapted, head = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160, 4 * (64 + 160), 128 * 64

    def operations(lora):
        model = random_model(config, one_device, lora=lora)
        arguments = (model.trainable, model.frozen, batch_of(np.zeros((B, T), np.int32)))
        return jax.jit(jax.grad(model.loss)).lower(*arguments).compile().cost_analysis()["flops"] / (B * T)

    lora, full = operations(LoraConfig(rank=4, targets=("gate_proj",))), operations(None)
    assert full == pytest.approx(6 * (layer + head), rel=0.1)
    assert lora == pytest.approx(4 * (layer + head) + 6 * adapted, rel=0.1)
    assert full - lora == pytest.approx(2 * (layer + head) - 6 * adapted, rel=0.05)


def test_merging_keeps_the_logits_and_unmerging_gives_the_weights_back(checkpoint, one_device, filled, tokens):
    model = filled(load_model(ModelConfig(str(checkpoint)), one_device, lora=UNEVEN), std=0.1)
    weights = merge(model)
    assert largest_logit_difference(model, with_weights(model, weights), tokens) < 1e-4
    assert np.abs(logits(model, tokens) - logits(with_weights(model, model.weights()), tokens)).max() > 0.1

    scales = nnx.filter_state(model.frozen, LoraScale)
    merged = dataclasses.replace(model, frozen=nnx.merge_state(weights, scales))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merge(merged, sign=-1), model.weights())


def test_merging_into_bfloat16_reports_what_rounding_costs(checkpoint, one_device, filled, tokens):
    config = ModelConfig(str(checkpoint), dtype="bfloat16")
    model = filled(load_model(config, one_device, lora=LoraConfig(rank=2, alpha=2)), std=0.1)
    weights = merge(model)
    assert {str(x.dtype) for x in jax.tree.leaves(weights)} == {"bfloat16"}
    difference = largest_logit_difference(model, with_weights(model, weights), tokens)
    assert 0 < difference < 0.1 * float(jnp.abs(logits(model, tokens)).max())


def test_a_merged_model_on_any_mesh_is_read_by_transformers(
    checkpoint, eight_devices, filled, reference, tokens, tmp_path
):
    model = filled(load_model(ModelConfig(str(checkpoint)), eight_devices, lora=UNEVEN), std=0.1)
    write_model(tmp_path / "merged", their_tensors(model, merge(model)), model.hf_config, checkpoint)
    np.testing.assert_allclose(logits(model, tokens), reference(tmp_path / "merged", tokens), atol=2e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_embedding_leaves_the_head_as_it_was(
    tied, write_checkpoint, eight_devices, filled, reference, tokens, tmp_path
):
    source = write_checkpoint(tie_word_embeddings=tied)
    lora = LoraConfig(rank=3, targets=("embed_tokens", "q_proj"))
    model = filled(load_model(ModelConfig(str(source)), eight_devices, lora=lora), std=0.1)
    merged = with_weights(model, merge(model))
    assert largest_logit_difference(model, merged, tokens) < 1e-4
    assert np.abs(logits(model, tokens) - reference(source, tokens)).max() > 0.1
    write_model(tmp_path / "merged", their_tensors(merged, merged.weights()), merged.hf_config, source)
    np.testing.assert_allclose(logits(model, tokens), reference(tmp_path / "merged", tokens), atol=2e-4)


def test_random_weights_are_made_where_they_belong(tiny, eight_devices):
    model = random_model(tiny, eight_devices)
    q = model.trainable["blocks"]["q"]["w"].get_value()
    assert {shard.data.size for shard in q.addressable_shards} == {q.size // 4}
    np.testing.assert_allclose(np.asarray(q).std(), 0.02, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat32"}, "dtype is 'bfloat32'; known are float32, bfloat16, float16. Did you mean 'float32'"),
        ({"remat": "product"}, "remat is 'product'.*Did you mean 'products'"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        ModelConfig(**options)
