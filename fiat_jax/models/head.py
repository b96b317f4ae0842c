"""Cross-entropy over a large vocabulary, a chunk of positions at a time: never a full (B, T, V) array in float32."""

import functools

import jax
import jax.numpy as jnp

from fiat_jax.models.attention import soft_cap

LOGITS_PER_CHUNK = 1 << 24  # 64 MiB of float32 a device


def logits_of(x_BTD: jax.Array, head_VD: jax.Array, cap: float | None = None) -> jax.Array:
    """Return float32 logits (B, T, V) of hidden states, capped; use the functions below where T is long."""
    return soft_cap(jnp.einsum("BTD,VD->BTV", x_BTD, head_VD, preferred_element_type=jnp.float32), cap)


def _chunks(array: jax.Array, count: int) -> jax.Array:
    """Split (B, M, ...) into (count, N = B · M / count, ...); every device keeps its own rows busy in every chunk."""
    B, M, *rest = array.shape
    return jnp.moveaxis(array.reshape(B, count, M // count, *rest), 1, 0).reshape(count, B * M // count, *rest)


def _unchunk(array: jax.Array, B: int, M: int) -> jax.Array:
    """Undo `_chunks`."""
    count, _, *rest = array.shape
    return jnp.moveaxis(array.reshape(count, B, M // count, *rest), 0, 1).reshape(B, M, *rest)


def _chunk_count(B: int, M: int, V: int) -> int:
    """Return the least divisor of M whose chunks stay within LOGITS_PER_CHUNK a device, or M where none does."""
    mesh = jax.sharding.get_abstract_mesh()
    limit = LOGITS_PER_CHUNK * (1 if mesh.empty else mesh.size)
    return next((n for n in range(1, M) if M % n == 0 and B * (M // n) * V <= limit), M)


def _logits_NV(x_ND, head_VD):
    return jnp.einsum("ND,VD->NV", x_ND, head_VD, preferred_element_type=jnp.float32)


def _pick(logits_NV, targets_N):
    return jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]


def largest(logits_NV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the largest logit of each row and its id, (N,) both; of equal ones the lowest id.

    Two passes, both of which XLA vectorises on CPUs: its own argmax takes six times as long there.
    """
    V = logits_NV.shape[-1]
    largest_N = logits_NV.max(-1)
    ids_NV = jnp.where(logits_NV == largest_N[:, None], jnp.arange(V, dtype=jnp.int32)[None], V - 1)
    return largest_N, ids_NV.min(-1)


def likeliest(logits_NV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Return the largest logits of each row, falling, and their ids, (N, count); of equal ones the lower id is first.

    They are found one after the other, by every device in its part of the vocabulary: `jax.lax.top_k` would gather it.
    """
    N, V = logits_NV.shape
    ids_1V = jnp.arange(V, dtype=jnp.int32)[None]

    def following(last, _):
        logit_N1, id_N1 = (x[:, None] for x in last)
        left_NV = (logits_NV < logit_N1) | ((logits_NV == logit_N1) & (ids_1V > id_N1))
        found = largest(jnp.where(left_NV, logits_NV, -jnp.inf))
        return found, found

    none = jnp.full(N, jnp.inf, logits_NV.dtype), jnp.full(N, -1, jnp.int32)
    logits_AN, ids_AN = jax.lax.scan(following, none, length=count)[1]
    return logits_AN.T, ids_AN.T


def target_log_probs(
    x_BMD: jax.Array, head_VD: jax.Array, targets_BM: jax.Array, cap: float | None = None
) -> jax.Array:
    """Return log P(target) (B, M) in float32 of hidden states x under the output matrix `head`, logits capped."""
    return target_and_best_log_probs(x_BMD, head_VD, targets_BM, 0, cap)[0]


def target_and_best_log_probs(
    x_BMD: jax.Array, head_VD: jax.Array, targets_BM: jax.Array, alternatives: int, cap: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log P(target) (B, M) as above, and of the likeliest in each place ids and log P (B, M, alternatives)."""
    B, M, _ = x_BMD.shape
    count = _chunk_count(B, M, head_VD.shape[0])

    def chunk(inputs):
        x_ND, targets_N = inputs
        logits_NV = soft_cap(_logits_NV(x_ND, head_VD), cap)
        norm_N = jax.nn.logsumexp(logits_NV, axis=-1)
        best_NA, ids_NA = likeliest(logits_NV, alternatives)
        return _pick(logits_NV, targets_N) - norm_N, ids_NA, best_NA - norm_N[:, None]

    found = jax.lax.map(chunk, (_chunks(x_BMD, count), _chunks(targets_BM, count)))
    return tuple(_unchunk(array, B, M) for array in found)  # pyright: ignore


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x_BMD: jax.Array, head_VD: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array, cap: float | None = None
) -> jax.Array:
    """Return the sum of -weight · log P(target), a float32 scalar.

    The gradient is taken in the same pass over the chunks, while a chunk's probabilities are at hand, so that the
    logits are computed once; that of the head only where it is trained.
    """
    return -jnp.sum(target_log_probs(x_BMD, head_VD, targets_BM, cap) * weights_BM)


def _forward(x, head, targets, weights, cap):
    x_BMD, head_VD, targets_BM, weights_BM = x.value, head.value, targets.value, weights.value
    B, M, _ = x_BMD.shape
    count = _chunk_count(B, M, head_VD.shape[0])

    def chunk(carry, inputs):
        loss, head_grad = carry
        x_ND, targets_N, weights_N = inputs
        logits_NV = soft_cap(_logits_NV(x_ND, head_VD), cap)
        norm_N = jax.nn.logsumexp(logits_NV, axis=-1)
        loss -= jnp.sum((_pick(logits_NV, targets_N) - norm_N) * weights_N)
        hit_NV = targets_N[:, None] == jnp.arange(head_VD.shape[0])[None]
        grad_NV = (jnp.exp(logits_NV - norm_N[:, None]) - hit_NV) * weights_N[:, None]
        if cap is not None:
            grad_NV *= 1 - (logits_NV / cap) ** 2
        grad_NV = grad_NV.astype(x_ND.dtype)
        if head.perturbed:
            head_grad += jnp.einsum("NV,ND->VD", grad_NV, x_ND, preferred_element_type=jnp.float32)
        return (loss, head_grad), jnp.einsum("NV,VD->ND", grad_NV, head_VD)

    head_grad = jnp.zeros(head_VD.shape, jnp.float32) if head.perturbed else None
    inputs = tuple(_chunks(array, count) for array in (x_BMD, targets_BM, weights_BM))
    (loss, head_grad), x_grad = jax.lax.scan(chunk, (jnp.float32(0), head_grad), inputs)
    dtype_token = jnp.zeros((), head_VD.dtype)  # residuals are arrays: this one carries the head's dtype to backward
    return loss, (_unchunk(x_grad, B, M), head_grad, dtype_token)


def _backward(cap, residuals, loss_grad):
    x_grad, head_grad, dtype_token = residuals
    scaled = (x_grad * loss_grad).astype(x_grad.dtype)
    head_grad = None if head_grad is None else (head_grad * loss_grad).astype(dtype_token.dtype)
    return scaled, head_grad, None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
