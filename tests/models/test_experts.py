"""A mixture of experts against the sum that defines it: values, gradients, and what is not computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiat_jax.models import experts
from fiat_jax.models.experts import by_expert, mix

N, D, F, E, J = 37, 6, 10, 5, 2


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x_ND, weights_NJ = rng.normal(size=(N, D)).astype(np.float32), rng.random((N, J)).astype(np.float32)
    gate, up, down = (rng.normal(size=s).astype(np.float32) for s in ((E, D, F), (E, D, F), (E, F, D)))
    return x_ND, weights_NJ, gate, up, down


@pytest.fixture(params=["all experts", "one without tokens", "one for all tokens"])
def chosen(request):
    rng = np.random.default_rng(1)
    known = {"all experts": range(E), "one without tokens": (0, 1, 3, 4), "one for all tokens": (2, 4)}[request.param]
    return np.stack([rng.permutation(known)[:J] for _ in range(N)]).astype(np.int32)


def reference(x_ND, weights_NJ, gate, up, down, experts_NJ):
    all_NEF = jax.nn.silu(jnp.einsum("ND,EDF->NEF", x_ND, gate)) * jnp.einsum("ND,EDF->NEF", x_ND, up)
    all_NED = jnp.einsum("NEF,EFD->NED", all_NEF, down)
    picked_NJD = jnp.take_along_axis(all_NED, experts_NJ[..., None], axis=1)
    return jnp.einsum("NJD,NJ->ND", picked_NJD, weights_NJ)


@pytest.mark.parametrize("block", [8, 16, 64])
def test_the_output_and_all_gradients_are_those_of_the_plain_sum(arrays, chosen, block, monkeypatch):
    monkeypatch.setattr(experts, "LARGEST_BLOCK", block)

    def ours(x_ND, weights_NJ, *ws):
        return mix(x_ND, weights_NJ, chosen, *ws, activation=jax.nn.silu)

    def loss(function):
        return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(function(*args))), argnums=range(5)))

    found = loss(ours)(*arrays)
    wanted = loss(lambda *args: reference(*args, chosen))(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), found, wanted)


def test_frozen_weights_get_no_gradient_computed(arrays):
    _, _, gate, *_ = arrays
    x_QMD, blocks_E = jnp.ones((E, 8, D)), jnp.ones(E, int)

    def products(argnums):
        traced = jax.make_jaxpr(jax.grad(lambda x, w: by_expert(x, w, blocks_E).sum(), argnums))(x_QMD, gate)
        return str(traced).count("dot_general[")

    # by runs of blocks and block by block: forward, for the rows, and for the weights
    assert (products(0), products((0, 1))) == (2 * 2, 2 * 3)


def test_blocks_of_no_expert_are_zeros(arrays):
    _, _, gate, *_ = arrays
    blocks_E = jnp.array([1, 0, 2, 0, 0])
    out_QMF = by_expert(jnp.ones((E, 8, D)), jnp.asarray(gate), blocks_E)
    np.testing.assert_allclose(out_QMF[0, 0], gate[0].sum(0), rtol=1e-5)
    np.testing.assert_allclose(out_QMF[1, 0], gate[2].sum(0), rtol=1e-5)
    np.testing.assert_allclose(out_QMF[2, 7], gate[2].sum(0), rtol=1e-5)
    assert not out_QMF[3:].any()
