"""A mixture of experts: tokens grouped by expert into blocks, one product a block (MegaBlocks, arXiv 2211.15841)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name
from jax.sharding import PartitionSpec

from fiat_jax.models.config import Build, DecoderConfig
from fiat_jax.models.linear import WEIGHT_STD
from fiat_jax.models.stack import ACTIVATIONS
from fiat_jax.sharding import MeshAxes, axis_names, axis_size

EXPERT_LOOP, RUN_LOOP, BLOCK_LOOP = "experts_in_use", "runs_of_one", "blocks_of_one"  # names in compiled programs
LARGEST_BLOCK = 128  # rows; what does not fill a block is computed in vain
RUN = 4  # blocks of one expert in one product, where it has as many
EXPERT_AXES = ("layers", "experts", "expert_embed", "mlp")


class Experts(nnx.Module):
    """Gated MLPs of which each token passes through the few that its router scores highest.

    The router's probabilities are a softmax over all experts, those of the chosen ones scaled to a sum of 1 where
    the configuration says so (Mixtral, arXiv 2401.04088; Qwen3, 2505.09388). Experts carry no adapters.
    """

    def __init__(self, c: DecoderConfig, build: Build, rngs: nnx.Rngs):
        D, E, F = c.width, c.num_experts, c.mlp_width

        def weight(*shape):
            return WEIGHT_STD * jax.random.normal(rngs.params(), (c.num_layers, *shape), jnp.dtype(build.dtype))

        self.router = nnx.Param(weight(D, E), axes=("layers", "embed", None))
        self.gate = nnx.Param(weight(E, D, F), axes=EXPERT_AXES)
        self.up = nnx.Param(weight(E, D, F), axes=EXPERT_AXES)
        self.down = nnx.Param(weight(E, F, D), axes=("layers", "experts", "mlp", "expert_embed"))
        self.config, self.rules = c, build.rules

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """Return the weighted sum of each row's chosen experts (N, D); one layer's slice of the stack."""
        scores_NE = jnp.matmul(x_ND, self.router[...], preferred_element_type=jnp.float32)
        weights_NJ, experts_NJ = jax.lax.top_k(jax.nn.softmax(scores_NE), self.config.experts_per_token)
        if self.config.normalised_experts:
            weights_NJ /= weights_NJ.sum(-1, keepdims=True)
        run = functools.partial(mix, activation=ACTIVATIONS[self.config.activation])
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and mesh.size > 1:
            # a device groups its own rows, or those of all who hold other experts; weights are gathered along D alone
            E, _, F = self.gate.shape
            batch, experts, mlp = (
                _fitting(mesh, axes, size)
                for axes, size in ((self.rules.batch, x_ND.shape[0]), (self.rules.experts, E), (self.rules.mlp, F))
            )
            rows = PartitionSpec(batch, None)
            wide, narrow = PartitionSpec(experts, None, mlp), PartitionSpec(experts, mlp, None)
            shared = tuple(axis for axis in experts if axis in batch)
            run = jax.shard_map(
                functools.partial(run, experts=experts, shared=shared, summed=(*mlp, *experts)),
                in_specs=(rows, rows, rows, wide, wide, narrow),
                out_specs=rows,
                check_vma=False,  # a block without tokens is zeros on every device, which differ on none
            )
        return run(x_ND, weights_NJ, experts_NJ, self.gate[...], self.up[...], self.down[...])


def _fitting(mesh, axes: MeshAxes, size: int) -> tuple[str, ...]:
    """Return the mesh axes that split a dimension of this size; none where they do not divide it."""
    names = axis_names(axes)
    return names if size % axis_size(mesh, names) == 0 else ()


def mix(
    x_ND, weights_NJ, experts_NJ, gate_EDF, up_EDF, down_EFD, *, activation, experts=(), shared=(), summed=()
) -> jax.Array:
    """Return each row's weighted sum over its chosen experts, (N, D).

    Within a `shard_map`, `experts` are the mesh axes that split E, `shared` those of them that split the rows as well,
    and `summed` all over which sums are partial. Each device then reads the rows of all that `shared` joins, computes
    what its own experts have to add, and gets the sums of its own rows back; no token is dropped, however uneven they
    are.
    """
    if shared:
        x_ND, weights_NJ, experts_NJ = (
            jax.lax.all_gather(each, shared, tiled=True) for each in (x_ND, weights_NJ, experts_NJ)
        )
    (N, D), (_, J), E = x_ND.shape, experts_NJ.shape, gate_EDF.shape[0]
    num_experts = E
    if experts:
        num_experts *= jax.lax.axis_size(experts)
        own_NJ = experts_NJ - E * jax.lax.axis_index(experts)
        experts_NJ = jnp.where((own_NJ >= 0) & (own_NJ < E), own_NJ, E)
    block = block_rows(N * J, num_experts)
    assigned_M, places_A, blocks_E = _grouped(experts_NJ.reshape(-1), E, block)
    rows_M, places_NJ = assigned_M // J, places_A.reshape(N, J)
    x_QMD = _spread(x_ND, rows_M, places_NJ).reshape(-1, block, D)
    gate_QMF = name(by_expert(x_QMD, gate_EDF, blocks_E), "gate")
    up_QMF = name(by_expert(x_QMD, up_EDF, blocks_E), "up")
    out_MD = by_expert(activation(gate_QMF) * up_QMF, down_EFD, blocks_E).reshape(-1, D)
    out_MD *= _rows(weights_NJ.reshape(-1, 1), assigned_M).astype(out_MD.dtype)
    out_ND = _collect(out_MD, rows_M, places_NJ)
    rest = tuple(axis for axis in summed if axis not in shared)
    out_ND = jax.lax.psum(out_ND, rest) if rest else out_ND
    return jax.lax.psum_scatter(out_ND, shared, tiled=True) if shared else out_ND


def block_rows(assignments: int, num_experts: int) -> int:
    """Return the rows of a block: what an expert has of them on average, as a power of two."""
    return min(LARGEST_BLOCK, max(8, 1 << (math.ceil(assignments / num_experts) - 1).bit_length()))


def most_blocks(assignments: int, num_experts: int, block: int) -> int:
    """Return how many blocks there are at most, however assignments fall on experts."""
    return min(assignments // block + num_experts, assignments)


def _grouped(experts_A: jax.Array, num_experts: int, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lay assignments out in blocks of one expert each, the experts in order.

    Returns the assignment in every place of every block (M,), `len(experts_A)` where there is none; the place of every
    assignment (A,), M of those to expert `num_experts`, who is somebody else's; and how many blocks each expert has.
    """
    A = experts_A.shape[0]
    M = most_blocks(A, num_experts, block) * block
    order_A = jnp.argsort(experts_A, stable=True)
    counts_E = jnp.bincount(experts_A, length=num_experts)
    blocks_E = -(-counts_E // block)
    ahead_E = (jnp.cumsum(blocks_E) - blocks_E) * block - (jnp.cumsum(counts_E) - counts_E)  # of its place in order
    ordered_A = jnp.take(experts_A, order_A)
    places_A = jnp.where(ordered_A < num_experts, ahead_E.at[ordered_A].get(mode="clip") + jnp.arange(A), M)
    assigned_M = jnp.full(M, A).at[places_A].set(order_A, mode="drop")
    return assigned_M, jnp.zeros_like(places_A).at[order_A].set(places_A, unique_indices=True), blocks_E


def _rows(x_RD: jax.Array, rows: jax.Array) -> jax.Array:
    """Return these rows; zeros for those behind the last."""
    return x_RD.at[rows].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _spread(x_ND: jax.Array, rows_M: jax.Array, places_NJ: jax.Array) -> jax.Array:
    """Return each place's row (M, D). It and `_collect` are each other's gradients: nothing is scattered either way."""
    return _rows(x_ND, rows_M)


@jax.custom_vjp
def _collect(x_MD: jax.Array, rows_M: jax.Array, places_NJ: jax.Array) -> jax.Array:
    """Return the sum of each row's places (N, D)."""
    return _rows(x_MD, places_NJ).sum(1)


def _with_indices(move):
    return lambda x, rows, places: (move(x, rows, places), (rows, places))


_spread.defvjp(_with_indices(_spread), lambda indices, grad_MD: (_collect(grad_MD, *indices), None, None))
_collect.defvjp(_with_indices(_collect), lambda indices, grad_ND: (_spread(grad_ND, *indices), None, None))


@jax.custom_vjp
def by_expert(x_QMI: jax.Array, w_EIO: jax.Array, blocks_E: jax.Array) -> jax.Array:
    """Return every block times the weights of its expert (Q, M, O): the first blocks_E[0] are of expert 0, and so on.

    Weights of experts that have no blocks are not touched, those of the others read once; blocks of none are zeros.
    """
    return _products(x_QMI, w_EIO, blocks_E, "MI,IO->MO", w_EIO.shape[2])


def _each_expert(blocks_E: jax.Array, step, carry):
    """Fold step(carry, expert, its first block, the block behind its last) over the experts that have blocks."""
    ends_E, active_E = jnp.cumsum(blocks_E), jnp.argsort(blocks_E == 0, stable=True)

    def one(i, carry):
        expert = active_E[i]
        return step(carry, expert, ends_E[expert] - blocks_E[expert], ends_E[expert])

    with jax.named_scope(EXPERT_LOOP):
        return jax.lax.fori_loop(0, jnp.count_nonzero(blocks_E), one, carry)


def _each_run(start, stop, most: int, step, carry):
    """Fold step(carry, first block, how many) over blocks of one expert: as many together as RUN, then one by one."""
    if most >= RUN:
        runs = (stop - start) // RUN
        with jax.named_scope(RUN_LOOP):
            carry = jax.lax.fori_loop(0, runs, lambda i, carry: step(carry, start + RUN * i, RUN), carry)
        start += RUN * runs
    with jax.named_scope(BLOCK_LOOP):
        return jax.lax.fori_loop(start, stop, lambda q, carry: step(carry, q, 1), carry)


def _products(x_QM, w_E, blocks_E, equation: str, outputs: int):
    Q, M, inputs = x_QM.shape

    def step(out_QM, expert, start, stop):
        w = w_E[expert]

        def product(out_QM, q, count):
            x = jax.lax.dynamic_slice_in_dim(x_QM, q, count).reshape(count * M, inputs)
            out = jnp.einsum(equation, x, w).reshape(count, M, outputs)
            return jax.lax.dynamic_update_slice_in_dim(out_QM, out, q, 0)

        return _each_run(start, stop, Q, product, out_QM)

    return _each_expert(blocks_E, step, jnp.zeros((Q, M, outputs), x_QM.dtype))


def _forward(x, w, blocks):
    kept = x.value if w.perturbed else None  # for the gradient of weights, which frozen ones do not need
    return by_expert(x.value, w.value, blocks.value), (kept, w.value, blocks.value)


def _backward(residuals, grad_QMO):
    x_QMI, w_EIO, blocks_E = residuals
    x_grad = _products(grad_QMO, w_EIO, blocks_E, "MO,IO->MI", w_EIO.shape[1])
    if x_QMI is None:
        return x_grad, None, None

    def step(w_grad, expert, start, stop):
        def add(grad_IO, q, count):
            x_qMI, grad_qMO = (jax.lax.dynamic_slice_in_dim(each, q, count) for each in (x_QMI, grad_QMO))
            return grad_IO + jnp.einsum("qMI,qMO->IO", x_qMI, grad_qMO, preferred_element_type=jnp.float32)

        grad_IO = _each_run(start, stop, x_QMI.shape[0], add, jnp.zeros(w_EIO.shape[1:], jnp.float32))
        return w_grad.at[expert].set(grad_IO.astype(w_grad.dtype))

    return x_grad, _each_expert(blocks_E, step, jnp.zeros_like(w_EIO)), None


by_expert.defvjp(_forward, _backward, symbolic_zeros=True)
