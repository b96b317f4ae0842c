"""What each token sees, and that neither the cache, packing, padding, recomputation nor the mesh changes a result."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.drawn import drawn

from fiat_jax.models.attention import KVCache
from fiat_jax.models.head import logits_of
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model, random_model
from fiat_jax.sharding import TRAIN, MeshConfig

T = 22  # attention in one block, which compiles fastest


@pytest.fixture(scope="module")
def model(decoder):
    return decoder()


@pytest.fixture(scope="module")
def hidden(model):
    """Hidden states of arrays of one row or more, through the mask of segments and branches."""

    @jax.jit
    def states(trainable, frozen, batch):
        return model.module(trainable, frozen).target_states(batch)

    return lambda batch: np.asarray(states(model.trainable, model.frozen, batch))


def row(*segments, length: int = T):
    """Lay out one row; a segment is a trunk and the branches that follow it."""
    columns = [
        (token, position, number, branch)
        for number, segment in enumerate(segments, start=1)
        for token, position, branch in _laid_out(segment)
    ]
    padding = [(0, 0, 0, 0)] * (length - len(columns))
    tokens, positions, ids, branches = (np.array([column], np.int32) for column in zip(*columns, *padding, strict=True))
    everywhere = np.arange(length, dtype=np.int32)[None]
    return {
        "tokens": tokens,
        "positions": positions,
        "segments": ids,
        "branches": branches,
        "target_positions": everywhere,
    }


def _laid_out(segment):
    trunk, *branches = segment
    yield from ((token, position, 0) for position, token in enumerate(trunk))
    for number, branch in enumerate(branches, start=1):
        yield from ((token, len(trunk) + offset, number) for offset, token in enumerate(branch))


def test_no_token_sees_the_future(model):
    batch = row((range(T),))
    assert model.config.vocab_size > T  # every token of the row has a line of the table to itself

    def state(trainable, t):
        x_TD = model.module(trainable, model.frozen).target_states(batch)[0]
        return jnp.sum(x_TD[t] * jnp.arange(16.0))

    sensitivity = jax.jit(jax.vmap(lambda t: jax.grad(state)(model.trainable, t)["embed"]["w"]))
    seen_TS = np.abs(sensitivity(jnp.arange(T)).get_value()).sum(-1)[:, :T] > 0
    np.testing.assert_array_equal(seen_TS, np.tril(np.ones((T, T), bool)))


def test_packed_rows_equal_the_rows_alone(hidden):
    first, second, third = [3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]
    packed = hidden(row((first,), (second,), (third,)))[0]
    alone = [hidden(row((ids,)))[0, : len(ids)] for ids in (first, second, third)]
    np.testing.assert_allclose(packed[:16], np.concatenate(alone), atol=1e-5)


def test_branches_equal_sequences_of_their_own(hidden):
    trunk, branches = [3, 1, 4, 1, 5], [[9, 2, 6], [5, 3], [9, 2, 7, 9]]
    together = hidden(row(([8, 8],), (trunk, *branches)))[0, 2:]
    start = len(trunk)
    for branch in branches:
        alone = hidden(row((trunk + branch,)))[0, len(trunk) : len(trunk) + len(branch)]
        np.testing.assert_allclose(together[start : start + len(branch)], alone, atol=1e-5)
        start += len(branch)


def test_padding_changes_nothing_and_is_finite(hidden):
    ids = [3, 1, 4, 1, 5]
    padded = row((ids,))
    noisy = padded | {"tokens": np.where(padded["segments"] == 0, 7, padded["tokens"])}
    np.testing.assert_array_equal(hidden(padded)[0, :5], hidden(noisy)[0, :5])
    np.testing.assert_allclose(hidden(padded)[0, :5], hidden(row((ids,), length=8))[0, :5], atol=1e-5)
    assert np.isfinite(hidden(padded)).all()


def test_attention_in_blocks_equals_attention_at_once(model, tokens):
    from fiat_jax.models import attention

    batch = row((tokens[0, :20],), (tokens[1, :4],), length=24)
    assert 24 % attention.CAUSAL_BLOCKS == 0
    blocks = model.module(model.trainable, model.frozen).target_states(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CAUSAL_BLOCKS", 1)
        at_once = model.module(model.trainable, model.frozen).target_states(batch)
    np.testing.assert_allclose(blocks, at_once, atol=1e-5)


@pytest.fixture(scope="module")
def cached(model):
    """Feed pieces of rows through the cache, and return all hidden states."""

    @jax.jit
    def step(trainable, tokens_BT, start, cache):
        S = cache.length
        positions_BT = start + jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        mask_BTS = jnp.arange(S)[None, None] <= positions_BT[:, :, None]
        module = model.module(trainable, model.frozen)
        return module(tokens_BT, positions_BT, mask_BTS, cache=cache, places_BT=positions_BT)

    def run(tokens_BT, pieces):
        c = model.config
        dims = (c.num_layers, tokens_BT.shape[0], 32, c.num_kv_heads, c.head_dim)
        cache, outputs, start = KVCache.zeros(*dims, dtype=jnp.float32, rules=TRAIN), [], 0
        for piece in pieces:
            x_BTD, cache = step(model.trainable, tokens_BT[:, start : start + piece], start, cache)
            outputs.append(x_BTD)
            start += piece
        return jnp.concatenate(outputs, axis=1)

    return run


def test_cached_decoding_equals_one_full_pass(cached, hidden, tokens):
    together = [row((ids,)) for ids in tokens]
    full_BTD = hidden({name: np.concatenate([one[name] for one in together]) for name in together[0]})
    np.testing.assert_allclose(cached(tokens, [10] + [1] * 12), full_BTD, atol=1e-5)
    np.testing.assert_allclose(cached(tokens, [1, 1, 10, 10]), full_BTD, atol=1e-5)


def batch_of(tokens_BT, seed=0):
    """Rows of two segments each, with eight targets of differing weight."""
    B, length = tokens_BT.shape
    rng = np.random.default_rng(seed)
    half = length // 2
    return {
        "tokens": tokens_BT,
        "positions": np.tile(np.concatenate([np.arange(half), np.arange(length - half)]), (B, 1)).astype(np.int32),
        "segments": np.tile(np.repeat([1, 2], [half, length - half]), (B, 1)).astype(np.int32),
        "branches": np.zeros((B, length), np.int32),
        "target_positions": rng.integers(0, length, (B, 8)).astype(np.int32),
        "targets": rng.integers(0, 40, (B, 8)).astype(np.int32),
        "weights": rng.choice([0, 0.5, 1], (B, 8)).astype(np.float32),
    }


def test_the_loss_is_the_weighted_sum_of_the_targets_negative_log_probabilities(model, tokens):
    batch = batch_of(tokens)
    log_probs_BM = jax.jit(model.log_probs)(model.trainable, model.frozen, batch)
    module = model.module(model.trainable, model.frozen)
    table_BMV = jax.nn.log_softmax(logits_of(module.target_states(batch), module.head_VD))
    expected_BM = np.take_along_axis(np.asarray(table_BMV), batch["targets"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_probs_BM, expected_BM, rtol=1e-5)
    loss = jax.jit(model.loss)(model.trainable, model.frozen, batch)
    np.testing.assert_allclose(loss, -np.sum(expected_BM * batch["weights"]), rtol=1e-5)


ADAPTERS = LoraConfig(rank=2, alpha=2, targets=("k_proj", "down_proj"))


def test_what_backward_recomputes_changes_no_gradient(decoder, filled, tokens):
    batch, found = batch_of(tokens), {}
    for remat in ("none", "products", "full"):
        model = filled(decoder(remat=remat, lora=ADAPTERS))
        found[remat] = jax.jit(jax.value_and_grad(model.loss))(model.trainable, model.frozen, batch)
        assert all(np.abs(grad).max() > 0 for grad in jax.tree.leaves(found[remat][1]))
    for remat in ("products", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[remat], found["none"])


@pytest.mark.parametrize(
    ("lora", "other"),
    [(None, MeshConfig(2, 2, 2)), (ADAPTERS, MeshConfig(1, 4, 2))],
    ids=["full tuning", "LoRA"],
)
def test_loss_and_gradients_are_the_same_on_every_mesh(lora, other, tiny, filled, tokens):
    batch, found = batch_of(np.tile(tokens, (2, 1))), []
    for config in (MeshConfig(1, 1, 1), other):
        mesh = config.build(jax.devices()[: config.data * config.fsdp * config.tensor])
        changed = (lambda model: model) if lora is None else (lambda model: filled(model, std=0.1))
        model = drawn(tiny, mesh, changed, lora=lora)
        with jax.set_mesh(mesh):
            loss, grads = jax.jit(jax.value_and_grad(model.loss))(model.trainable, model.frozen, batch)
        found.append((float(loss), jax.tree.map(np.asarray, grads)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_a_size_that_the_mesh_does_not_divide_changes_nothing(tiny, tokens):
    odd, found = dataclasses.replace(tiny, vocab_size=41, num_kv_heads=3, width=15, mlp_width=25), []
    for config in (MeshConfig(1, 1, 1), MeshConfig(2, 2, 2)):
        mesh = config.build(jax.devices()[: config.data * config.fsdp * config.tensor])
        model = drawn(odd, mesh)
        with jax.set_mesh(mesh):
            found.append(jax.jit(model.loss)(model.trainable, model.frozen, batch_of(tokens)))
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_the_compiled_program_never_holds_a_float32_array_of_all_logits(tiny, one_device, monkeypatch):
    from fiat_jax.models import head

    B, M, V = 4, T, 2048
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", B * 2 * V)
    model = random_model(dataclasses.replace(tiny, vocab_size=V), one_device)
    batch = batch_of(np.zeros((B, T), np.int32))
    batch |= {name: np.zeros((B, M), batch[name].dtype) for name in ("target_positions", "targets", "weights")}
    for function in (jax.value_and_grad(model.loss), model.log_probs):
        text = jax.jit(function).lower(model.trainable, model.frozen, batch).compile().as_text()
        largest = max(np.prod([int(size) for size in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text))
        assert B * 2 * V <= largest <= V * tiny.width < B * M * V / 4


def test_bfloat16_states_stay_near_those_of_float32(checkpoint, one_device, tokens):
    results = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(ModelConfig(str(checkpoint), dtype=dtype), one_device, lora=ADAPTERS)
        module = model.module(model.trainable, model.frozen)
        states = jax.jit(module.target_states)(batch_of(tokens))
        assert str(states.dtype) == dtype
        assert logits_of(states, module.head_VD).dtype == jnp.float32
        results.append(np.asarray(states, np.float32))
    assert 0 < np.abs(results[0] - results[1]).mean() < 0.02 * np.abs(results[0]).mean()


def test_all_weights_tuned_in_bfloat16_are_kept_and_changed_in_float32(tiny, one_device, tokens):
    model = random_model(tiny, one_device, dtype="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(model.trainable)} == {"float32"}
    states = jax.eval_shape(lambda x: model.module(x, model.frozen).target_states(batch_of(tokens)), model.trainable)
    assert str(states.dtype) == "bfloat16"
    grads = jax.jit(jax.grad(model.loss))(model.trainable, model.frozen, batch_of(tokens))
    assert {str(x.dtype) for x in jax.tree.leaves(grads)} == {"float32"}
    assert len(jax.tree.leaves(nnx.filter_state(model.frozen, nnx.Param))) == 0
