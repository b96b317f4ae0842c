"""Masked attention over grouped heads, and the KV cache."""

import jax
import jax.numpy as jnp
from flax import struct

from fiat_jax.sharding import ShardingRules, constrain

CAUSAL_BLOCKS = 8  # leaves out 7/16 of all scores, and a block stays in the cache of a CPU core
PREFIX_BLOCK = 512  # keys of a shared prefix at a time: the scores of a hundred queries stay in the cache of a CPU core
UNBOUNDED = 1 << 30  # a window of more tokens than any text has
CACHE_AXES = ("layers", "batch", None, "kv_heads", "head_dim")
MASKED = -1e30  # finite, so that a query which sees nothing (padding) stays free of NaN


def visible(segments_BT: jax.Array, branches_BT: jax.Array) -> jax.Array:
    """Return which keys each query sees (B, T, S): earlier ones of its own segment, on the trunk or its own branch."""
    T = segments_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((T, T), bool))
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    keys_BTS, queries_BTS = branches_BT[:, None, :], branches_BT[:, :, None]
    return causal_TS[None] & same_BTS & ((keys_BTS == 0) | (keys_BTS == queries_BTS))


def within(window: int, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array:
    """Return which keys (B, T, S) lie among the last `window` positions up to the query's own."""
    return query_positions_BT[:, :, None] - key_positions_BS[:, None, :] < window


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Squash x smoothly into (-cap, cap); without a cap return it as it is (Gemma 2, arXiv 2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q_BTHGK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
    bias_BHTS: jax.Array | None = None,
    causal: bool,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K); scores (times `scale`, 1/√K by default) and softmax in float32.

    `causal`: keys and queries are the same tokens, and no query sees a later key; the queries are cut into blocks that
    leave those keys out. `bias_BHTS` is added to scores, the same for the queries of a group. Backward recomputes the
    probabilities. The queries of a group are further rows of one matrix product: XLA's CPU backend transposes anything
    richer in the backward pass, at 3.5 times the cost.
    """
    B, T, H, G, K = q_BTHGK.shape
    blocks = CAUSAL_BLOCKS if causal and T % CAUSAL_BLOCKS == 0 else 1
    block = T // blocks

    @jax.checkpoint
    def core(q_BHGTK, k_BHSK, v_BHSK, mask_BTS, bias_BHTS):
        q_BHNK = q_BHGTK.reshape(B, H, G * block, K)
        scores_BHNS = jnp.einsum("BHNK,BHSK->BHNS", q_BHNK, k_BHSK, preferred_element_type=jnp.float32)
        scores_BHGTS = soft_cap(scores_BHNS.reshape(B, H, G, block, -1), cap)
        if bias_BHTS is not None:
            scores_BHGTS += bias_BHTS[:, :, None]
        probs_BHGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores_BHGTS, MASKED))
        probs_BHNS = probs_BHGTS.reshape(scores_BHNS.shape).astype(v_BHSK.dtype)
        return jnp.einsum("BHNS,BHSK->BHNK", probs_BHNS, v_BHSK).reshape(B, H, G, block, K)

    q_BHGTK = (q_BTHGK * (K**-0.5 if scale is None else scale)).transpose(0, 2, 3, 1, 4)
    k_BHSK, v_BHSK = k_BSHK.transpose(0, 2, 1, 3), v_BSHK.transpose(0, 2, 1, 3)
    # every block reads the keys up to its end, joined from parts: backward adds up parts, where slices it would pad
    blocks_BHGTK, outs = jnp.split(q_BHGTK, blocks, axis=3), []
    keys, values = jnp.split(k_BHSK, blocks, axis=2), jnp.split(v_BHSK, blocks, axis=2)
    for i, block_BHGTK in enumerate(blocks_BHGTK):
        k_BHSK, v_BHSK = (jnp.concatenate(parts[: i + 1], axis=2) for parts in (keys, values))
        rows, seen = slice(i * block, (i + 1) * block), k_BHSK.shape[2]
        bias_block_BHTS = None if bias_BHTS is None else bias_BHTS[:, :, rows, :seen]
        outs.append(core(block_BHGTK, k_BHSK, v_BHSK, mask_BTS[:, rows, :seen], bias_block_BHTS))
    return jnp.concatenate(outs, axis=3).transpose(0, 3, 1, 2, 4)


def attend_shared(
    q_BTHGK: jax.Array,
    own: tuple[jax.Array, jax.Array, jax.Array],
    prefix: tuple[jax.Array, jax.Array, jax.Array],
    *,
    window: jax.Array | None = None,
    positions_BT: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K) over each row's own keys and one prefix that all rows share.

    One exact softmax in float32 (Hydragen, arXiv 2402.05099, with the running maximum of FlashAttention, 2205.14135).
    The prefix is read once for all rows, whose queries are the rows of one matrix product for each head, and a block of
    it at a time, so that no scores over all of it exist.

    Args:
        own: keys, values (B, S, H, K) and which of them each query sees (B, T, S).
        prefix: keys, values (H, P, K), P at most PREFIX_BLOCK or a multiple of it, and how many of them count.
        window: how many positions back a query sees; positions_BT are those of the queries, the prefix begins at 0.
    """
    B, T, H, G, K = q_BTHGK.shape
    k_BSHK, v_BSHK, mask_BTS = own
    k_HPK, v_HPK, length = prefix
    q_BTHGK = q_BTHGK * (K**-0.5 if scale is None else scale)
    q_BHNK = q_BTHGK.transpose(0, 2, 3, 1, 4).reshape(B, H, G * T, K)
    scores_BHNS = jnp.einsum("BHNK,BSHK->BHNS", q_BHNK, k_BSHK, preferred_element_type=jnp.float32)
    scores_BHGTS = jnp.where(mask_BTS[:, None, None], soft_cap(scores_BHNS.reshape(B, H, G, T, -1), cap), MASKED)
    top_BHGT1 = scores_BHGTS.max(-1, keepdims=True)
    weights_BHGTS = jnp.exp(scores_BHGTS - top_BHGT1)
    weights_BHNS = weights_BHGTS.reshape(B, H, G * T, -1).astype(v_BSHK.dtype)
    out_BHNK = jnp.einsum("BHNS,BSHK->BHNK", weights_BHNS, v_BSHK, preferred_element_type=jnp.float32)

    def rows(x):  # of all texts side by side: (H, N = B · G · T, …)
        return x.reshape(B, H, G * T, -1).transpose(1, 0, 2, 3).reshape(H, B * G * T, -1)

    state = (rows(top_BHGT1), rows(weights_BHGTS.sum(-1, keepdims=True)), rows(out_BHNK))
    q_HNK, block = rows(q_BHNK), min(PREFIX_BLOCK, k_HPK.shape[1])
    positions_N = jnp.broadcast_to(positions_BT[:, None], (B, G, T)).reshape(-1)

    def add(i, state):
        top_HN1, total_HN1, out_HNK = state
        k_block, v_block = (jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=1) for x in (k_HPK, v_HPK))
        places_P = i * block + jnp.arange(block)
        seen_NP = jnp.broadcast_to(places_P[None] < length, (positions_N.shape[0], block))
        if window is not None:
            seen_NP &= positions_N[:, None] - places_P[None] < window
        scores_HNP = jnp.einsum("HNK,HPK->HNP", q_HNK, k_block, preferred_element_type=jnp.float32)
        scores_HNP = jnp.where(seen_NP[None], soft_cap(scores_HNP, cap), MASKED)
        higher_HN1 = jnp.maximum(top_HN1, scores_HNP.max(-1, keepdims=True))
        weights_HNP = jnp.where(seen_NP[None], jnp.exp(scores_HNP - higher_HN1), 0)
        shrink_HN1 = jnp.exp(top_HN1 - higher_HN1)
        more_HNK = jnp.einsum(
            "HNP,HPK->HNK", weights_HNP.astype(v_block.dtype), v_block, preferred_element_type=jnp.float32
        )
        total_HN1 = total_HN1 * shrink_HN1 + weights_HNP.sum(-1, keepdims=True)
        return higher_HN1, total_HN1, out_HNK * shrink_HN1 + more_HNK

    blocks = -(-length // block)  # those behind the last key are not read
    _, total_HN1, out_HNK = jax.lax.fori_loop(0, blocks, add, state)
    out_BHGTK = (out_HNK / total_HN1).reshape(H, B, G, T, K).transpose(1, 3, 0, 2, 4)
    return out_BHGTK.astype(q_BTHGK.dtype)


@struct.dataclass
class Prefix:
    """Keys and values of a text that others begin with, (L, H, P, K) each, and how many of the P count."""

    k_LHPK: jax.Array
    v_LHPK: jax.Array
    length: jax.Array

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return one layer's keys and values (H, P, K), and their number."""
        return self.k_LHPK[layer], self.v_LHPK[layer], self.length


@struct.dataclass
class KVCache:
    """Keys and values of every layer, (L, B, S, H, K) each: argument and result of the decoder, never its state."""

    k_LBSHK: jax.Array
    v_LBSHK: jax.Array

    @classmethod
    def zeros(
        cls, num_layers: int, rows: int, length: int, num_heads: int, head_dim: int, *, dtype, rules: ShardingRules
    ) -> "KVCache":
        """Return an empty cache of `length` slots for each row, laid out by the rules."""
        empty = jnp.zeros((num_layers, rows, length, num_heads, head_dim), dtype)
        return cls(empty, empty).constrained(rules)

    def constrained(self, rules: ShardingRules) -> "KVCache":
        """Return the cache laid out by the rules."""
        return KVCache(constrain(self.k_LBSHK, rules, *CACHE_AXES), constrain(self.v_LBSHK, rules, *CACHE_AXES))

    def write(self, layer: jax.Array, slots_BT: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array) -> "KVCache":
        """Write one layer's keys and values at the given slots of each row; slots past the end are dropped."""
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
        return KVCache(
            self.k_LBSHK.at[layer, rows_B1, slots_BT].set(k_BTHK, mode="drop"),
            self.v_LBSHK.at[layer, rows_B1, slots_BT].set(v_BTHK, mode="drop"),
        )

    def put(self, layer: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> "KVCache":
        """Write all slots of one layer."""
        return KVCache(self.k_LBSHK.at[layer].set(k_BSHK), self.v_LBSHK.at[layer].set(v_BSHK))

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return one layer's keys and values (B, S, H, K)."""
        return self.k_LBSHK[layer], self.v_LBSHK[layer]
