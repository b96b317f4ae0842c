"""Masked attention over grouped heads, and the KV cache."""

import jax
import jax.numpy as jnp
from flax import struct

from fiat_jax.sharding import ShardingRules, constrain

CAUSAL_BLOCKS = 8  # leaves out 7/16 of all scores, and a block stays in the cache of a CPU core
PREFIX_BLOCK = 512  # keys of a shared prefix at a time: their scores stay in the cache of a CPU core
FEW_QUERIES = 256  # of so few a head, twice as many keys at a time
PREFIX_LOOP = "prefix_blocks"  # its name in compiled programs: how often it runs only the prefix says
UNBOUNDED = 1 << 30  # a window of more tokens than any text has
PREFIX_AXES = ("layers", "kv_heads", "head_dim", None), ("layers", "kv_heads", None, "head_dim")  # keys, values
CACHE_AXES = ("layers", "batch", "kv_heads", "head_dim", None), ("layers", "batch", "kv_heads", None, "head_dim")
MASKED = -1e30  # finite, so that a query which sees nothing (padding) stays free of NaN


def visible(segments_BT: jax.Array, branches_BT: jax.Array | None = None) -> jax.Array:
    """Return which keys each query sees (B, T, S): earlier ones of its own segment, on the trunk or its own branch.

    Without branches all is trunk.
    """
    T = segments_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((T, T), bool))
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    seen_BTS = causal_TS[None] & same_BTS
    if branches_BT is None:
        return seen_BTS
    keys_BTS, queries_BTS = branches_BT[:, None, :], branches_BT[:, :, None]
    return seen_BTS & ((keys_BTS == 0) | (keys_BTS == queries_BTS))


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


def attend_kept(
    q_BTHGK: jax.Array,
    kept: tuple[jax.Array, jax.Array, jax.Array],
    prefix: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    *,
    window: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    scale: float | None = None,
    cap: float | None = None,
    bias_BHTS: jax.Array | None = None,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K) over what is kept of each row and, with one, a prefix that all share.

    One exact softmax in float32 (Hydragen, arXiv 2402.05099, with the running maximum of FlashAttention, 2205.14135).
    The prefix is read once for all rows, whose queries are the rows of one matrix product for each head, and a block of
    it at a time, so that no scores over all of it exist.

    Args:
        kept: keys (B, H, K, S), values (B, H, S, K) and which of them each query sees (B, T, S), one at least.
        prefix: keys (H, K, P), values (H, P, K), P a multiple of PREFIX_BLOCK, and how many of them count.
        window: how many positions back a query sees of the prefix, which begins at 0; positions_BT are the queries'.
        bias_BHTS: added to the scores of what is kept.
    """
    B, T, H, G, K = q_BTHGK.shape
    k_BHKS, v_BHSK, mask_BTS = kept
    q_BTHGK = q_BTHGK * (K**-0.5 if scale is None else scale)
    q_BHNK = q_BTHGK.transpose(0, 2, 3, 1, 4).reshape(B, H, G * T, K)
    scores_BHNS = jnp.einsum("BHNK,BHKS->BHNS", q_BHNK, k_BHKS, preferred_element_type=jnp.float32)
    scores_BHGTS = soft_cap(scores_BHNS.reshape(B, H, G, T, -1), cap)
    if bias_BHTS is not None:
        scores_BHGTS += bias_BHTS[:, :, None]
    scores_BHNS = jnp.where(mask_BTS[:, None, None], scores_BHGTS, MASKED).reshape(scores_BHNS.shape)
    top_BHN1 = scores_BHNS.max(-1, keepdims=True)
    weights_BHNS = jnp.exp(scores_BHNS - top_BHN1)
    total_BHN1 = weights_BHNS.sum(-1, keepdims=True)
    sum_BHNK = _weighted("BHNS,BHSK->BHNK", weights_BHNS, v_BHSK)
    if prefix is None:
        out_BHNK = sum_BHNK / total_BHN1
        return out_BHNK.reshape(B, H, G, T, K).transpose(0, 3, 1, 2, 4).astype(q_BTHGK.dtype)

    def rows(x_BHN):  # of all texts side by side
        return x_BHN.transpose(1, 0, 2, 3).reshape(H, B * G * T, -1)

    state, q_HNK = tuple(rows(x) for x in (top_BHN1, total_BHN1, sum_BHNK)), rows(q_BHNK)
    k_HKP, v_HPK, length = prefix
    if window is not None:
        assert positions_BT is not None
        positions_N = jnp.broadcast_to(positions_BT[:, None], (B, G, T)).reshape(-1)

    block = prefix_block(B * G * T, v_HPK.shape[1])

    def add(i, state):
        top_HN1, total_HN1, sum_HNK = state
        begin = i * block
        some_k_HKP = jax.lax.dynamic_slice_in_dim(k_HKP, begin, block, 2)
        some_v_HPK = jax.lax.dynamic_slice_in_dim(v_HPK, begin, block, 1)
        places_P = begin + jnp.arange(block)
        seen_NP = (places_P < length)[None]
        if window is not None:
            seen_NP &= positions_N[:, None] - places_P[None] < window
        scores_HNP = jnp.einsum("HNK,HKP->HNP", q_HNK, some_k_HKP, preferred_element_type=jnp.float32)
        scores_HNP = jnp.where(seen_NP[None], soft_cap(scores_HNP, cap), MASKED)
        higher_HN1 = jnp.maximum(top_HN1, scores_HNP.max(-1, keepdims=True))
        weights_HNP, shrink_HN1 = jnp.exp(scores_HNP - higher_HN1), jnp.exp(top_HN1 - higher_HN1)
        total_HN1 = total_HN1 * shrink_HN1 + weights_HNP.sum(-1, keepdims=True)
        return higher_HN1, total_HN1, sum_HNK * shrink_HN1 + _weighted("HNP,HPK->HNK", weights_HNP, some_v_HPK)

    blocks = -(-length // block)  # those behind the last key are not read
    with jax.named_scope(PREFIX_LOOP):
        _, total_HN1, sum_HNK = jax.lax.fori_loop(0, blocks, add, state)
    out_BTHGK = (sum_HNK / total_HN1).reshape(H, B, G, T, K).transpose(1, 3, 0, 2, 4)
    return out_BTHGK.astype(q_BTHGK.dtype)


def prefix_block(queries: int, capacity: int) -> int:
    """Return how many keys of a prefix of this capacity are read at a time for so many queries of a head."""
    wide = queries <= FEW_QUERIES and capacity % (2 * PREFIX_BLOCK) == 0
    return 2 * PREFIX_BLOCK if wide else PREFIX_BLOCK


def _weighted(equation: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    """Return the values' weighted sums in float32."""
    return jnp.einsum(equation, weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


@struct.dataclass
class Prefix:
    """Keys (L, H, K, P) and values (L, H, P, K) of a text that others begin with, and how many of the P count."""

    k_LHKP: jax.Array
    v_LHPK: jax.Array
    length: jax.Array

    @staticmethod
    def capacity(longest: int) -> int:
        """Return the room that a prefix of so many tokens takes: whole blocks."""
        return -(-longest // PREFIX_BLOCK) * PREFIX_BLOCK

    @classmethod
    def zeros(
        cls, num_layers: int, num_heads: int, capacity: int, head_dim: int, *, dtype, rules: ShardingRules
    ) -> "Prefix":
        """Return a prefix of no tokens, with room for some (see `capacity`)."""
        k_LHKP = jnp.zeros((num_layers, num_heads, head_dim, capacity), dtype)
        v_LHPK = jnp.zeros((num_layers, num_heads, capacity, head_dim), dtype)
        return cls(k_LHKP, v_LHPK, jnp.int32(0)).constrained(rules)

    def constrained(self, rules: ShardingRules) -> "Prefix":
        """Return the prefix laid out by the rules."""
        k_LHKP, v_LHPK = constrain(self.k_LHKP, rules, *PREFIX_AXES[0]), constrain(self.v_LHPK, rules, *PREFIX_AXES[1])
        return Prefix(k_LHKP, v_LHPK, self.length)

    def extended(self, own: "KVCache", count: jax.Array) -> "Prefix":
        """Return the prefix with the one row of `own` behind it, `count` of whose tokens count."""

        def grown(held, own, axis):
            return jax.lax.dynamic_update_slice_in_dim(held, own[:, 0], self.length, axis)

        k_LHKP, v_LHPK = grown(self.k_LHKP, own.k_LBHKS, 3), grown(self.v_LHPK, own.v_LBHSK, 2)
        return Prefix(k_LHKP, v_LHPK, self.length + count)

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return one layer's keys (H, K, P) and values (H, P, K), and their number."""
        return self.k_LHKP[layer], self.v_LHPK[layer], self.length


@struct.dataclass
class KVCache:
    """Keys (L, B, H, K, S) and values (L, B, H, S, K) of every layer: argument and result of a model, never its state.

    Places are the last dimension of keys: on a CPU a query's products with them run along it.
    """

    k_LBHKS: jax.Array
    v_LBHSK: jax.Array

    @classmethod
    def zeros(
        cls, num_layers: int, rows: int, length: int, num_heads: int, head_dim: int, *, dtype, rules: ShardingRules
    ) -> "KVCache":
        """Return an empty cache of `length` places for each row, laid out by the rules."""
        k_LBHKS = jnp.zeros((num_layers, rows, num_heads, head_dim, length), dtype)
        v_LBHSK = jnp.zeros((num_layers, rows, num_heads, length, head_dim), dtype)
        return cls(k_LBHKS, v_LBHSK).constrained(rules)

    def constrained(self, rules: ShardingRules) -> "KVCache":
        """Return the cache laid out by the rules."""
        return KVCache(constrain(self.k_LBHKS, rules, *CACHE_AXES[0]), constrain(self.v_LBHSK, rules, *CACHE_AXES[1]))

    @property
    def length(self) -> int:
        """How many places a row has."""
        return self.v_LBHSK.shape[3]

    def write(self, layer: jax.Array, places_BT: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array) -> "KVCache":
        """Write one layer's keys and values at the given places of each row; those past the end are dropped."""
        rows_B1 = jnp.arange(places_BT.shape[0])[:, None]
        return KVCache(
            self.k_LBHKS.at[layer, rows_B1, :, :, places_BT].set(k_BTHK, mode="drop"),
            self.v_LBHSK.at[layer, rows_B1, :, places_BT].set(v_BTHK, mode="drop"),
        )

    def put(self, layer: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> "KVCache":
        """Write all places of one layer."""
        k_BHKS, v_BHSK = as_kept(k_BSHK, v_BSHK)
        return KVCache(self.k_LBHKS.at[layer].set(k_BHKS), self.v_LBHSK.at[layer].set(v_BHSK))

    def put_rows(self, rows_C: jax.Array, other: "KVCache", source_C: jax.Array) -> "KVCache":
        """Put rows of another cache in place of these, zeros behind what it has; rows behind the last are none."""

        def put(held, new, axis):
            padding = [(0, 0)] * new.ndim
            padding[axis] = (0, held.shape[axis] - new.shape[axis])
            return held.at[:, rows_C].set(jnp.pad(new[:, source_C], padding), mode="drop")

        return KVCache(put(self.k_LBHKS, other.k_LBHKS, 4), put(self.v_LBHSK, other.v_LBHSK, 3))

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return one layer's keys (B, H, K, S) and values (B, H, S, K)."""
        return self.k_LBHKS[layer], self.v_LBHSK[layer]


def as_kept(k_BSHK: jax.Array, v_BSHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return keys (B, H, K, S) and values (B, H, S, K), as a cache has them."""
    return k_BSHK.transpose(0, 2, 3, 1), v_BSHK.transpose(0, 2, 1, 3)
