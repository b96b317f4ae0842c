"""The one Linear: its low-rank path, scales, dropout and padding to a common rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fiat_jax.models.linear import Linear, LoraSlot, apply, low_rank

N, D, F, L = 64, 12, 10, 2


def linear(slot=None, equation="ND,DF->NF", shape=(D, F), axes=("embed", "mlp"), seed=0, dtype="float32"):
    rngs = nnx.Rngs(seed)
    return Linear("up", equation, shape, axes, num_layers=L, slot=slot, rngs=rngs, dtype=jnp.dtype(dtype))


def layer(stack, index):
    """Return one layer of a stack, as a scan hands it out."""
    graphdef, state = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], state))


@pytest.fixture(scope="module")
def x_ND():
    return jax.random.normal(jax.random.key(7), (N, D))


def test_a_fresh_adapter_changes_nothing_and_a_is_uniform_up_to_the_root_of_the_inputs():
    stack = linear(LoraSlot((400, 400), (1.0, 1.0)), "NHK,HKD->ND", (3, 4, F), ("kv_heads", "head_dim", "embed"))
    a, b = np.asarray(stack.a[...]), np.asarray(stack.b[...])
    bound = 12**-0.5  # both input dimensions count
    assert a.shape == (L, 3, 4, 400)
    assert b.shape == (L, 400, F)
    assert bound * 0.99 < np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.02)
    assert not b.any()
    assert not np.array_equal(a[0], a[1])
    x_NHK = jax.random.normal(jax.random.key(0), (N, 3, 4))
    plain = jnp.einsum("NHK,HKD->ND", x_NHK, stack.w[...][1])
    np.testing.assert_allclose(layer(stack, 1)(x_NHK), plain, rtol=1e-5, atol=1e-6)


def test_the_low_rank_path_is_scale_times_x_a_b_of_each_layer(x_ND):
    stack = linear(LoraSlot((4, 4), (2.0, 0.5)))
    stack.b[...] = jax.random.normal(jax.random.key(1), stack.b.shape)
    for index, scale in enumerate((2.0, 0.5)):
        w, a, b = (np.asarray(array[...][index]) for array in (stack.w, stack.a, stack.b))
        expected = x_ND @ w + scale * (x_ND @ a) @ b
        np.testing.assert_allclose(layer(stack, index)(x_ND), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(x_ND @ (w + stack.delta()[index]), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_smaller_rank_is_padded_with_zeros():
    stack = linear(LoraSlot((1, 4), (1.0, 1.0)))
    assert stack.a.shape == (L, D, 4)
    assert not stack.a[...][0, :, 1:].any()
    assert stack.a[...][0, :, :1].all()
    assert stack.a[...][1].all()


def test_a_layer_of_rank_zero_is_the_plain_layer(x_ND):
    stack = linear(LoraSlot((0, 4), (0.0, 1.0)))
    stack.b[...] = jnp.ones(stack.b.shape)
    np.testing.assert_array_equal(layer(stack, 0)(x_ND), x_ND @ stack.w[...][0])
    assert np.abs(layer(stack, 1)(x_ND) - x_ND @ stack.w[...][1]).max() > 0.1


def test_gradients_of_the_low_rank_path_are_those_of_plain_products(x_ND):
    keys = jax.random.split(jax.random.key(1), 3)
    a = jax.random.normal(keys[0], (D, 3 + 2))
    bs = (jax.random.normal(keys[1], (3, F)), jax.random.normal(keys[2], (2, D)))

    def plain(x, a, bs):
        return (x @ a[:, :3]) @ bs[0], (x @ a[:, 3:]) @ bs[1]

    def gradients(f):
        total = lambda *args: sum(jnp.sum(jnp.sin(y)) for y in f(*args))  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(x_ND, a, bs)

    jax.tree.map(
        lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-4, atol=1e-4), gradients(low_rank), gradients(plain)
    )


def test_layers_applied_together_are_those_applied_one_by_one(x_ND):
    stacks = [linear(LoraSlot((4, 4), (2.0, 0.5))), linear(None, seed=1), linear(LoraSlot((1, 3), (1.0, 1.0)), seed=2)]
    for stack in stacks[::2]:
        stack.b[...] = jax.random.normal(jax.random.key(1), stack.b.shape)
    layers = [layer(stack, 1) for stack in stacks]
    for together, one in zip(apply(layers, x_ND), layers, strict=True):
        np.testing.assert_allclose(together, one(x_ND), rtol=1e-5, atol=1e-6)


@pytest.fixture
def transparent():
    """An adapter that hands its input on, over a weight of zero: what dropout does can be read off the output."""
    stack = linear(LoraSlot((D, D), (1.0, 1.0), dropout=0.25), shape=(D, D))
    stack.w[...] = jnp.zeros((L, D, D))
    stack.a[...] = stack.b[...] = jnp.tile(jnp.eye(D)[None], (L, 1, 1))
    return layer(stack, 0)


def test_dropout_is_off_without_a_key(transparent, x_ND):
    np.testing.assert_allclose(transparent(x_ND), x_ND, rtol=1e-6)


def test_dropout_drops_its_share_and_scales_the_rest(transparent, x_ND):
    y_ND = np.asarray(transparent(x_ND, jax.random.key(0)))
    kept = y_ND != 0
    np.testing.assert_allclose(y_ND[kept], np.asarray(x_ND)[kept] / 0.75, rtol=1e-6)
    assert 0.70 < kept.mean() < 0.80


def test_dropout_is_one_draw_per_key_and_leaves_the_frozen_path_alone(transparent, x_ND):
    first, again, other = (np.asarray(transparent(x_ND, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    transparent.b[...] = jnp.zeros(transparent.b.shape)
    transparent.w[...] = jnp.eye(D)
    np.testing.assert_array_equal(transparent(x_ND, jax.random.key(0)), x_ND)


def test_layers_of_different_names_drop_different_inputs(x_ND):
    drawn = []
    for name in ("gate", "up"):
        stack = Linear(
            name,
            "ND,DF->NF",
            (D, D),
            ("embed", "mlp"),
            num_layers=1,
            slot=LoraSlot((D,), (1.0,), dropout=0.5),
            rngs=nnx.Rngs(0),
            dtype=jnp.float32,
        )
        stack.b[...] = jnp.linalg.inv(stack.a[...])
        dropped = layer(stack, 0)(x_ND, jax.random.key(0)) - x_ND @ stack.w[...][0]
        drawn.append(np.abs(dropped) > 1e-3)
    assert (drawn[0] != drawn[1]).any()


def test_adapters_are_float32_over_a_bfloat16_weight_and_compute_in_the_dtype_of_their_input(x_ND):
    stack = linear(LoraSlot((4, 4), (1.0, 1.0)), dtype="bfloat16")
    assert [str(v.dtype) for v in (stack.w, stack.a, stack.b)] == ["bfloat16", "float32", "float32"]
    assert layer(stack, 0)(x_ND.astype(jnp.bfloat16)).dtype == jnp.bfloat16
