"""A mixture of experts: tokens grouped by expert into blocks, one product a block (MegaBlocks, arXiv 2211.15841)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name
from jax.sharding import PartitionSpec

from fiat_jax.models.linear import WEIGHT_STD
from fiat_jax.sharding import ShardingRules, axis_size

LARGEST_BLOCK = 256  # rows; a block reads its expert's weights once, and what does not fill a block is computed in vain
EXPERT_AXES = ("layers", "experts", "embed", "mlp")


class Experts(nnx.Module):
    """Gated MLPs of which each token passes through the few that its router scores highest.

    The router's probabilities are a softmax over all experts, those of the chosen ones scaled to a sum of 1 where
    `normalised` (Mixtral, arXiv 2401.04088; Qwen3, 2505.09388). Experts carry no adapters.
    """

    def __init__(
        self,
        width,
        mlp_width,
        num_experts,
        chosen,
        normalised,
        activation,
        *,
        num_layers,
        rules: ShardingRules,
        rngs,
        dtype,
    ):
        def weight(*shape):
            return WEIGHT_STD * jax.random.normal(rngs.params(), (num_layers, *shape), dtype)

        self.router = nnx.Param(weight(width, num_experts), axes=("layers", "embed", None))
        self.gate = nnx.Param(weight(num_experts, width, mlp_width), axes=EXPERT_AXES)
        self.up = nnx.Param(weight(num_experts, width, mlp_width), axes=EXPERT_AXES)
        self.down = nnx.Param(weight(num_experts, mlp_width, width), axes=("layers", "experts", "mlp", "embed"))
        self.chosen, self.normalised, self.activation, self.rules = chosen, normalised, activation, rules

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """Return the weighted sum of each row's chosen experts (N, D); one layer's slice of the stack."""
        scores_NE = jnp.matmul(x_ND, self.router[...], preferred_element_type=jnp.float32)
        weights_NJ, experts_NJ = jax.lax.top_k(jax.nn.softmax(scores_NE), self.chosen)
        if self.normalised:
            weights_NJ /= weights_NJ.sum(-1, keepdims=True)
        run = functools.partial(mix, activation=self.activation)
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and mesh.size > 1:
            # every device groups its own rows; weights are gathered from where they lie, but for the tensor axis
            rows, tensor = PartitionSpec(self._rows(mesh, x_ND.shape[0]), None), self._tensor(mesh)
            wide, narrow = PartitionSpec(None, None, tensor), PartitionSpec(None, tensor, None)
            run = jax.shard_map(
                functools.partial(run, tensor=tensor),
                in_specs=(rows, rows, rows, wide, wide, narrow),
                out_specs=rows,
                check_vma=False,  # a block without tokens is zeros on every device, which differ on none
            )
        return run(x_ND, weights_NJ, experts_NJ, self.gate[...], self.up[...], self.down[...])

    def _rows(self, mesh, num_rows: int):
        return self.rules.batch if num_rows % axis_size(mesh, self.rules.batch) == 0 else None

    def _tensor(self, mesh):
        return self.rules.mlp if self.gate.shape[-1] % axis_size(mesh, self.rules.mlp) == 0 else None


def mix(x_ND, weights_NJ, experts_NJ, gate_EDF, up_EDF, down_EFD, *, activation, tensor=None) -> jax.Array:
    """Return each row's weighted sum over its chosen experts, (N, D).

    With `tensor`, the mesh axis that splits F, partial sums are added up over it.
    """
    (N, D), (_, J), E = x_ND.shape, experts_NJ.shape, gate_EDF.shape[0]
    block = min(LARGEST_BLOCK, max(8, 1 << (math.ceil(N * J / E) - 1).bit_length()))
    places_M, expert_Q = _grouped(experts_NJ.reshape(-1), E, block)
    rows_M = jnp.where(places_M < N * J, places_M // J, N)  # the row behind the last is zero
    x_QMD = jnp.pad(x_ND, ((0, 1), (0, 0)))[rows_M].reshape(-1, block, D)
    gate_QMF = name(by_expert(x_QMD, gate_EDF, expert_Q), "gate")
    up_QMF = name(by_expert(x_QMD, up_EDF, expert_Q), "up")
    out_MD = by_expert(activation(gate_QMF) * up_QMF, down_EFD, expert_Q).reshape(-1, D)
    weights_M = jnp.pad(weights_NJ.reshape(-1), (0, 1))[jnp.minimum(places_M, N * J)]
    out_MD *= weights_M[:, None].astype(out_MD.dtype)
    out_ND = jnp.zeros((N + 1, D), x_ND.dtype).at[rows_M].add(out_MD)[:N]
    return out_ND if tensor is None else jax.lax.psum(out_ND, tensor)


def _grouped(experts_A: jax.Array, num_experts: int, block: int) -> tuple[jax.Array, jax.Array]:
    """Lay assignments out in blocks of one expert each.

    Returns the assignment (its place in experts_A) in every place of every block, len(experts_A) where there is none,
    and the expert of every block, `num_experts` where the block is empty.
    """
    A = experts_A.shape[0]
    num_blocks = min(A // block + num_experts, A)
    order_A = jnp.argsort(experts_A, stable=True)
    counts_E = jnp.bincount(experts_A, length=num_experts)
    blocks_E = -(-counts_E // block)
    first_block_E, first_E = jnp.cumsum(blocks_E) - blocks_E, jnp.cumsum(counts_E) - counts_E
    expert_Q = jnp.searchsorted(jnp.cumsum(blocks_E), jnp.arange(num_blocks), side="right")
    of_Q = jnp.minimum(expert_Q, num_experts - 1)
    rank_QM = (jnp.arange(num_blocks) - first_block_E[of_Q])[:, None] * block + jnp.arange(block)[None]
    there_QM = (rank_QM < counts_E[of_Q][:, None]) & (expert_Q < num_experts)[:, None]
    places_QM = order_A[jnp.where(there_QM, first_E[of_Q][:, None] + rank_QM, 0)]
    return jnp.where(there_QM, places_QM, A).reshape(-1), expert_Q


@jax.custom_vjp
def by_expert(x_QMI: jax.Array, w_EIO: jax.Array, expert_Q: jax.Array) -> jax.Array:
    """Return x[q] @ w[expert_Q[q]] for every block q; zeros where the block is empty (expert E)."""
    return _products(x_QMI, w_EIO, expert_Q, "MI,IO->MO", w_EIO.shape[2])


def _products(x_QM, w_E, expert_Q, equation: str, outputs: int):
    def one(_, inputs):
        x_M, expert = inputs
        product = lambda: jnp.einsum(equation, x_M, w_E[expert])  # noqa: E731
        nothing = lambda: jnp.zeros((x_M.shape[0], outputs), x_M.dtype)  # noqa: E731
        return None, jax.lax.cond(expert < w_E.shape[0], product, nothing)

    return jax.lax.scan(one, None, (x_QM, expert_Q))[1]


def _forward(x, w, expert):
    kept = x.value if w.perturbed else None  # for the gradient of weights, which frozen ones do not need
    return by_expert(x.value, w.value, expert.value), (kept, w.value, expert.value)


def _backward(residuals, grad_QMO):
    x_QMI, w_EIO, expert_Q = residuals
    x_grad = _products(grad_QMO, w_EIO, expert_Q, "MO,IO->MI", w_EIO.shape[1])
    if x_QMI is None:
        return x_grad, None, None

    def add(w_grad, inputs):
        x_MI, grad_MO, expert = inputs
        return w_grad.at[expert].add((x_MI.T @ grad_MO).astype(w_grad.dtype), mode="drop"), None

    return x_grad, jax.lax.scan(add, jnp.zeros_like(w_EIO), (x_QMI, grad_QMO, expert_Q))[0], None


by_expert.defvjp(_forward, _backward, symbolic_zeros=True)
