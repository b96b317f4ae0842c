"""Cross-entropy in chunks against optax's over all positions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fiat_jax.models import head
from fiat_jax.models.head import cross_entropy, largest, likeliest, target_log_probs

B, M, D, V = 3, 12, 8, 30


@pytest.fixture(params=[1, 4, 12], ids=["one chunk", "four chunks", "a chunk a position"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", B * M * V // request.param)
    assert head._chunk_count(B, M, V) == request.param


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x_BMD, head_VD = rng.normal(size=(B, M, D)).astype(np.float32), rng.normal(size=(V, D)).astype(np.float32)
    targets_BM = rng.integers(0, V, (B, M)).astype(np.int32)
    return x_BMD, head_VD, targets_BM, rng.choice([0, 0.3, 1], (B, M)).astype(np.float32)


def reference(x_BMD, head_VD, targets_BM, weights_BM, cap=None):
    logits_BMV = x_BMD @ head_VD.T
    logits_BMV = logits_BMV if cap is None else cap * jnp.tanh(logits_BMV / cap)
    losses_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, targets_BM)
    return jnp.sum(losses_BM * weights_BM)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("chunks")
def test_the_loss_and_its_gradients_are_those_of_optax(arrays):
    x_BMD, head_VD, *rest = arrays
    ours = jax.value_and_grad(cross_entropy, argnums=(0, 1))(x_BMD, head_VD, *rest)
    theirs = jax.value_and_grad(reference, argnums=(0, 1))(x_BMD, head_VD, *rest)
    jax.tree.map(close, ours, theirs)
    close(cross_entropy(x_BMD, head_VD, *rest), theirs[0])


@pytest.mark.usefixtures("chunks")
def test_capped_logits_have_their_loss_and_gradients(arrays):
    x_BMD, head_VD, targets_BM, weights_BM = arrays
    ours = jax.value_and_grad(cross_entropy, argnums=(0, 1))(x_BMD, head_VD, targets_BM, weights_BM, 2.0)
    theirs = jax.value_and_grad(reference, argnums=(0, 1))(x_BMD, head_VD, targets_BM, weights_BM, 2.0)
    jax.tree.map(close, ours, theirs)
    assert abs(ours[0] - cross_entropy(x_BMD, head_VD, targets_BM, weights_BM)) > 1
    close(-jnp.sum(target_log_probs(x_BMD, head_VD, targets_BM, 2.0) * weights_BM), theirs[0])


@pytest.mark.usefixtures("chunks")
def test_gradients_follow_the_loss_they_belong_to(arrays):
    x_BMD, head_VD, *rest = arrays
    ours = jax.grad(lambda x, h: jnp.tanh(0.01 * cross_entropy(x * 2, h * 3, *rest)), argnums=(0, 1))(x_BMD, head_VD)
    theirs = jax.grad(lambda x, h: jnp.tanh(0.01 * reference(x * 2, h * 3, *rest)), argnums=(0, 1))(x_BMD, head_VD)
    jax.tree.map(close, ours, theirs)


@pytest.mark.usefixtures("chunks")
def test_a_frozen_head_gets_no_gradient_computed(arrays):
    x_BMD, head_VD, *rest = arrays
    close(jax.grad(cross_entropy)(x_BMD, head_VD, *rest), jax.grad(reference)(x_BMD, head_VD, *rest))
    shapes = [v.aval.shape for v in _equation_outputs(jax.make_jaxpr(jax.grad(cross_entropy))(x_BMD, head_VD, *rest))]
    assert (V, D) not in shapes
    both = jax.make_jaxpr(jax.grad(cross_entropy, argnums=(0, 1)))(x_BMD, head_VD, *rest)
    assert (V, D) in [v.aval.shape for v in _equation_outputs(both)]


def _equation_outputs(closed):
    for equation in closed.jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from _equation_outputs(inner)


@pytest.mark.usefixtures("chunks")
def test_log_probabilities_are_those_of_a_softmax(arrays):
    x_BMD, head_VD, targets_BM, _ = arrays
    expected_BMV = jax.nn.log_softmax(x_BMD @ head_VD.T)
    expected_BM = np.take_along_axis(np.asarray(expected_BMV), targets_BM[..., None], axis=-1)[..., 0]
    close(target_log_probs(x_BMD, head_VD, targets_BM), expected_BM)


def test_a_target_without_weight_changes_neither_loss_nor_gradient(arrays):
    x_BMD, head_VD, targets_BM, weights_BM = arrays
    other_BM = np.where(weights_BM == 0, (targets_BM + 1) % V, targets_BM)
    assert (other_BM != targets_BM).any()
    found = [jax.value_and_grad(cross_entropy)(x_BMD, head_VD, ids, weights_BM) for ids in (targets_BM, other_BM)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_extreme_logits_stay_finite(arrays):
    x_BMD, head_VD, *rest = arrays
    loss, grad = jax.value_and_grad(cross_entropy)(x_BMD * 1e4, head_VD, *rest)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()


def test_bfloat16_states_give_a_float32_loss_and_gradients_of_their_own_dtype(arrays):
    x_BMD, head_VD, *rest = arrays
    x_BMD, head_VD = jnp.bfloat16(x_BMD), jnp.bfloat16(head_VD)
    loss, grads = jax.value_and_grad(cross_entropy, argnums=(0, 1))(x_BMD, head_VD, *rest)
    assert (loss.dtype, grads[0].dtype, grads[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(
        loss, reference(x_BMD.astype(jnp.float32), head_VD.astype(jnp.float32), *rest), rtol=2e-3
    )


@pytest.mark.parametrize(("positions", "count"), [(16, 4), (12, 3), (7, 7), (4, 1), (1, 1)])
def test_chunks_are_the_fewest_that_fit_and_divide_the_positions(positions, count, monkeypatch):
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", B * V * 4)
    assert head._chunk_count(B, positions, V) == count


@pytest.mark.parametrize("count", [0, 1, 5, V - 1])
def test_the_likeliest_are_those_of_top_k(count):
    rng = np.random.default_rng(0)
    plain, tied = rng.normal(size=(4, V)), np.round(rng.normal(size=(4, V))) + 0.0  # no zero below zero
    impossible = np.where(np.arange(V) == 7, -np.inf, rng.normal(size=(4, V)))
    logits_NV = np.concatenate([plain, tied, impossible, np.zeros((1, V))]).astype(np.float32)
    logits_NA, ids_NA = jax.jit(likeliest, static_argnums=1)(logits_NV, count)
    expected = jax.lax.top_k(logits_NV, count)
    np.testing.assert_array_equal(logits_NA, expected[0])
    np.testing.assert_array_equal(ids_NA, expected[1])
    if count:
        for ours, first in zip(largest(logits_NV), (logits_NA, ids_NA), strict=True):
            np.testing.assert_array_equal(ours, first[:, 0])
