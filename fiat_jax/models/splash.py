"""Splash attention, the Pallas kernel for TPUs that JAX ships, over one device's rows and heads."""

from typing import Any

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU: lengths are multiples of them
BLOCKS = (512, 256, LANES)  # queries, and keys, at a time: the largest that divides them


def own(
    q_BTHGK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segments_BT: jax.Array,
    *,
    window: int | None,
    cap: float | None,
    kept: str,
    interpret: bool,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K) of scaled queries that see earlier keys of their segment.

    Args:
        window: how many positions back they see, themselves included.
        kept: the name under which a policy of `jax.checkpoint` finds outputs and sums of weights.
    """
    out_BNTK = _own(q_BTHGK, k_BTHK, v_BTHK, segments_BT, window=window, cap=cap, kept=kept, interpret=interpret)
    return _unheaded(out_BNTK, q_BTHGK.shape)


def behind(
    q_BTHGK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segments_BT: jax.Array,
    k_HKP: jax.Array,
    v_HPK: jax.Array,
    length: jax.Array,
    *,
    cap: float | None,
    interpret: bool,
) -> jax.Array:
    """Return the same of queries that see `length` keys of a prefix besides; it has no gradient."""
    options = {"cap": cap, "interpret": interpret, "sums": True}
    own_BNTK, own_BNT = _own(q_BTHGK, k_BTHK, v_BTHK, segments_BT, window=None, kept=None, **options)
    q_BNTK, P = _padded(_headed(q_BTHGK), 2), v_HPK.shape[1]
    kernel = _kernel(q_BNTK.shape[1], (q_BNTK.shape[2], P), window=None, causal=False, kept=None, **options)
    ids = _segments(jnp.zeros(q_BNTK.shape[2], jnp.int32), (jnp.arange(P) >= length).astype(jnp.int32))
    k_HPK = k_HKP.transpose(0, 2, 1)
    out_BNTK, (sum_BNT,) = jax.vmap(lambda q_NTK: kernel(q_NTK, k_HPK, v_HPK, segment_ids=ids))(q_BNTK)
    out_BNTK, sum_BNT = (x[:, :, : q_BTHGK.shape[1]] for x in (out_BNTK, sum_BNT))
    share_BNT1 = jax.nn.sigmoid(sum_BNT - own_BNT)[..., None]  # the logarithms of both sums of weights
    mixed_BNTK = own_BNTK + share_BNT1 * (out_BNTK.astype(jnp.float32) - own_BNTK)
    return _unheaded(mixed_BNTK, q_BTHGK.shape).astype(q_BTHGK.dtype)


def _own(q_BTHGK, k_BTHK, v_BTHK, segments_BT, *, window, cap, kept, interpret, sums=False) -> Any:
    """Return outputs (B, N, T, K) and, where asked for, the logarithms of the sums of weights (B, N, T)."""
    T = q_BTHGK.shape[1]
    q_BNTK, k_BHTK, v_BHTK = (_padded(x, 2) for x in (_headed(q_BTHGK), _kept(k_BTHK), _kept(v_BTHK)))
    segments_BT = _padded(segments_BT, 1)  # what is padded here comes later than every query that counts
    _, N, padded, _ = q_BNTK.shape
    options = {"window": window, "causal": True, "cap": cap, "kept": kept, "sums": sums, "interpret": interpret}
    kernel = _kernel(N, (padded, padded), **options)

    def one(q_NTK, k_HTK, v_HTK, segments_T):
        return kernel(q_NTK, k_HTK, v_HTK, segment_ids=_segments(segments_T, segments_T))

    found: Any = jax.vmap(one)(q_BNTK, k_BHTK, v_BHTK, segments_BT)
    if not sums:
        return found[:, :, :T]
    out_BNTK, (sum_BNT,) = found
    return out_BNTK[:, :, :T].astype(jnp.float32), sum_BNT[:, :, :T]


def _kernel(num_heads: int, shape: tuple[int, int], *, window, causal, cap, kept, sums, interpret) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention  # Pallas takes half a second to import

    if not causal:
        mask = splash_attention.FullMask(shape)
    elif window is not None and window < shape[1]:
        mask = splash_attention.LocalMask(shape, (window - 1, 0), 0)
    else:
        mask = splash_attention.CausalMask(shape)
    queries, keys = (next(block for block in BLOCKS if size % block == 0) for size in shape)
    backward: dict[str, Any] = (
        {} if sums else {"block_q_dkv": queries, "block_kv_dkv": keys, "block_q_dq": queries, "block_kv_dq": keys}
    )
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_attention.BlockSizes(block_q=queries, block_kv=keys, **backward),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        residual_checkpoint_name=kept,
        save_residuals=sums,
        interpret=interpret,
    )


def _segments(queries_T, keys_S):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return SegmentIds(queries_T, keys_S)


def _headed(q_BTHGK: jax.Array) -> jax.Array:
    B, T, H, G, K = q_BTHGK.shape
    return q_BTHGK.transpose(0, 2, 3, 1, 4).reshape(B, H * G, T, K)


def _unheaded(x_BNTK: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    B, T, H, G, K = shape
    return x_BNTK.reshape(B, H, G, T, K).transpose(0, 3, 1, 2, 4)


def _kept(x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK.transpose(0, 2, 1, 3)


def _padded(x: jax.Array, axis: int) -> jax.Array:
    """Return an array with zeros behind it, up to whole lanes."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, padding)
