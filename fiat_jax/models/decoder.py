"""A Llama-family decoder: layers stacked and scanned, tokens flattened to rows in every matrix product."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.models.attention import (
    PREFIX_BLOCK,
    UNBOUNDED,
    KVCache,
    Prefix,
    attend_kept,
    visible,
    within,
)
from fiat_jax.models.config import Build, DecoderConfig
from fiat_jax.models.experts import Experts
from fiat_jax.models.kernels import ATTENDED, Seen, attend_own
from fiat_jax.models.linear import EMBED_AXES, EMBEDDING, WEIGHT_STD, Embedding, Linear, apply
from fiat_jax.models.rope import sequence_lengths, turn
from fiat_jax.models.stack import ACTIVATIONS, RMSNorm, scan_layers
from fiat_jax.sharding import constrain


class Block(nnx.Module):
    """Attention and a gated MLP or a mixture of them, each behind a norm and a residual."""

    def __init__(self, c: DecoderConfig, build: Build, rngs: nnx.Rngs):
        D, F, H, G, K = c.width, c.mlp_width, c.num_kv_heads, c.queries_per_kv_head, c.head_dim
        slots, dtype = dict(build.slots), jnp.dtype(build.dtype)

        def linear(module, equation, shape, axes):
            slot = slots.get(f"blocks.{module}")
            options = {"num_layers": c.num_layers, "slot": slot, "rngs": rngs, "dtype": dtype}
            return Linear(module, equation, shape, axes, bias=module in c.biased, **options)

        def norm(width):
            return RMSNorm(width, eps=c.norm_eps, offset=c.norm_offset, dtype=dtype, num_layers=c.num_layers)

        self.config, self.rules, self.kernel = c, build.rules, build.kernel
        self.norm_attention, self.norm_mlp = norm(D), norm(D)
        if c.sandwich:
            self.norm_attended, self.norm_out = norm(D), norm(D)
        if c.qk_norm:
            self.norm_q, self.norm_k = norm(K), norm(K)
        if c.fused:
            self.qkv = linear("qkv", "ND,DP->NP", (D, sum(c.head_widths)), ("embed", "fused"))
        else:
            self.q = linear("q", "ND,DHGK->NHGK", (D, H, G, K), ("embed", "kv_heads", "queries", "head_dim"))
            self.k = linear("k", "ND,DHK->NHK", (D, H, K), ("embed", "kv_heads", "head_dim"))
            self.v = linear("v", "ND,DHK->NHK", (D, H, K), ("embed", "kv_heads", "head_dim"))
        self.o = linear("o", "NHGK,HGKD->ND", (H, G, K, D), ("kv_heads", "queries", "head_dim", "embed"))
        if c.num_experts:
            self.experts = Experts(c, build, rngs)
            return
        if c.fused:
            self.gate_up = linear("gate_up", "ND,DP->NP", (D, 2 * F), ("embed", "fused"))
        else:
            self.gate = linear("gate", "ND,DF->NF", (D, F), ("embed", "mlp"))
            self.up = linear("up", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.down = linear("down", "NF,FD->ND", (F, D), ("mlp", "embed"))

    def __call__(self, x_ND, rope_BTK, seen: Seen, cache: KVCache | None, layer, places_BT, dropout_key, shared=None):
        """Return the block's output and the cache with this layer's keys and values written in place.

        `shared` is what `attend_kept` takes besides: a prefix's keys and values in this layer, window, positions.
        """
        c, (B, T), key = self.config, seen.mask_BTS.shape[:2], dropout_key

        q_BTHGK, k_BSHK, v_BSHK = self._heads(self.norm_attention(x_ND), rope_BTK, key)
        if cache is not None:
            fresh = places_BT is None
            cache = cache.put(layer, k_BSHK, v_BSHK) if fresh else cache.write(layer, places_BT, k_BSHK, v_BSHK)
        options: dict[str, Any] = {"scale": c.query_scale, "cap": c.attention_cap}
        if cache is None or places_BT is None:
            out_BTHGK = attend_own(self.kernel, self.rules, q_BTHGK, k_BSHK, v_BSHK, seen, shared, **options)
        else:
            prefix, window, positions_BT = (None, None, None) if shared is None else shared
            options |= {"window": window, "positions_BT": positions_BT}
            kept = (*cache.read(layer), seen.mask_BTS)
            out_BTHGK = name(attend_kept(q_BTHGK, kept, prefix, **options), ATTENDED)
        out_ND = self.o(out_BTHGK.reshape(B * T, *out_BTHGK.shape[2:]), key)
        x_ND = x_ND + (self.norm_attended(name(out_ND, "projected")) if c.sandwich else out_ND)
        x_ND = name(constrain(x_ND, self.rules, "batch", None), "mid")

        out_ND = self._mlp(self.norm_mlp(x_ND), key)
        x_ND = x_ND + (self.norm_out(name(out_ND, "down")) if c.sandwich else out_ND)
        return constrain(x_ND, self.rules, "batch", None), cache

    def _heads(self, x_ND, rope_BTK, key):
        """Return queries, keys and values of every head, turned to their positions."""
        c, (B, T) = self.config, rope_BTK.shape[1:3]
        H, G, K = c.num_kv_heads, c.queries_per_kv_head, c.head_dim
        if c.fused:
            q_w, k_w, _ = c.head_widths
            q, k, v = jnp.split(self.qkv(x_ND, key), [q_w, q_w + k_w], axis=1)
        else:
            q, k, v = apply((self.q, self.k, self.v), x_ND, key)
        q_BTHGK, k_BTHK, v_BTHK = q.reshape(B, T, H, G, K), k.reshape(B, T, H, K), v.reshape(B, T, H, K)
        if c.qk_norm:
            q_BTHGK, k_BTHK = self.norm_q(name(q_BTHGK, "unnormed")), self.norm_k(name(k_BTHK, "unnormed"))
        return name(turn(q_BTHGK, rope_BTK), "q"), name(turn(k_BTHK, rope_BTK), "k"), name(v_BTHK, "v")

    def _mlp(self, x_ND, key):
        c = self.config
        if c.num_experts:
            return self.experts(x_ND)
        if c.fused:
            gate_NF, up_NF = jnp.split(self.gate_up(x_ND, key), 2, axis=1)
        else:
            gate_NF, up_NF = apply((self.gate, self.up), x_ND, key)
        return self.down(ACTIVATIONS[c.activation](name(gate_NF, "gate")) * name(up_NF, "up"), key)


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to log-probabilities. Dimensions: docs/dimensions.md."""

    def __init__(self, config: DecoderConfig, build: Build, rngs: nnx.Rngs):
        V, D, dtype = config.vocab_size, config.width, jnp.dtype(build.dtype)
        self.config, self.build = config, build
        self.embed = Embedding(V, D, slot=dict(build.slots).get(EMBEDDING), rngs=rngs, dtype=dtype)
        self.blocks = Block(config, build, rngs)
        self.norm = RMSNorm(D, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)
        if not config.tied_head:
            head = WEIGHT_STD * jax.random.normal(rngs.params(), (V, D), dtype)
            self.head = nnx.Param(head, axes=EMBED_AXES)

    def __call__(
        self,
        tokens_BT,
        positions_BT,
        mask_BTS,
        *,
        segments_BT=None,
        lengths_BT=None,
        cache=None,
        places_BT=None,
        prefix: Prefix | None = None,
        dropout_key=None,
    ):
        """Return hidden states (B, T, D) after the last norm, and the cache.

        mask_BTS says which keys each query sees, never a later one; without a cache S = T. Where it says no more than
        that queries see their own segment, segments_BT says it too, for kernels that take no mask. With a cache (see
        `KVCache`) the keys of token t are written to place places_BT[b, t] before they are attended, and S is the
        cache's length; without places the tokens fill the whole of the cache. Where layers see a window, a token's
        place is its position, less the length of the prefix that all rows begin with, if there is one.
        lengths_BT is the length of each token's sequence, that of its row by default: only ropes of the kinds
        "dynamic" and "longrope" read it.
        """
        c, (B, T) = self.config, tokens_BT.shape
        if lengths_BT is None:
            lengths_BT = jnp.broadcast_to(positions_BT.max(axis=1, keepdims=True) + 1, positions_BT.shape)
        keys_BS = positions_BT
        if cache is not None:
            keys_BS = jnp.arange(mask_BTS.shape[2])[None] + (0 if prefix is None else prefix.length)
        ropes = [reach.rope.tables(positions_BT, lengths_BT, c.head_dim) for reach in c.reaches]
        masks = [
            mask_BTS if reach.window is None else mask_BTS & within(reach.window, positions_BT, keys_BS)
            for reach in c.reaches
        ]
        ropes, masks = jnp.stack(ropes), jnp.stack(masks)

        x_ND = constrain(self.embed(tokens_BT.reshape(-1), self.build.rules), self.build.rules, "batch", None)
        if c.embed_scale != 1:
            x_ND *= jnp.asarray(c.embed_scale, x_ND.dtype)
        reaches = jnp.array(c.layer_reaches or [0] * c.num_layers)
        windows = jnp.array([UNBOUNDED if r.window is None else r.window for r in c.reaches])

        def run(carry, block, layer, key):
            x_ND, cache = carry
            reach = 0 if len(c.reaches) == 1 else reaches[layer]
            window = windows[reach] if any(r.window for r in c.reaches) else None
            shared = None if prefix is None else (prefix.read(layer), window, positions_BT)
            seen = Seen(masks[reach], segments_BT, tuple(r.window for r in c.reaches), reach)
            return block(x_ND, ropes[reach], seen, cache, layer, places_BT, key, shared)

        x_ND, cache = scan_layers(run, (x_ND, cache), self.blocks, c.num_layers, self.build.remat, dropout_key)
        return self.norm(x_ND).reshape(B, T, c.width), cache

    @property
    def head_VD(self) -> jax.Array:
        """The output matrix, which a tied model shares with the embedding."""
        return self.embed.w[...] if self.config.tied_head else self.head[...]

    def plain_states(self, tokens_BT: jax.Array, lengths_B: jax.Array | None = None) -> jax.Array:
        """Return the hidden states (B, T, D) of rows that each hold one text, of T tokens or followed by padding."""
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool))[None], (B, T, T))
        lengths_BT = None if lengths_B is None else jnp.broadcast_to(lengths_B[:, None], (B, T))
        segments_BT = jnp.zeros_like(positions_BT)
        return self(tokens_BT, positions_BT, mask_BTS, segments_BT=segments_BT, lengths_BT=lengths_BT)[0]

    def target_states(self, batch, dropout_key=None, prefix: Prefix | None = None) -> jax.Array:
        """Return the hidden states (B, M, D) whose outputs predict the batch's targets, all texts behind a prefix."""
        segments_BT, positions_BT = batch["segments"], batch["positions"]
        branches_BT = batch.get("branches")
        mask_BTS, lengths_BT = visible(segments_BT, branches_BT), sequence_lengths(segments_BT, positions_BT)
        if prefix is not None:
            positions_BT, lengths_BT = positions_BT + prefix.length, lengths_BT + prefix.length
        options = {"lengths_BT": lengths_BT, "prefix": prefix, "dropout_key": dropout_key}
        options |= {"segments_BT": segments_BT if branches_BT is None else None}
        x_BTD, _ = self(batch["tokens"], positions_BT, mask_BTS, **options)
        return jnp.take_along_axis(x_BTD, batch["target_positions"][:, :, None], axis=1)

    def room(self, rows: int, length: int) -> KVCache:
        """Return what is kept of texts of up to `length` tokens, of none so far."""
        c, dtype = self.config, jnp.dtype(self.build.dtype)
        return KVCache.zeros(
            c.num_layers, rows, length, c.num_kv_heads, c.head_dim, dtype=dtype, rules=self.build.rules
        )

    def begin(self, tokens_RT, lengths_R, whole_R, prefix: Prefix | None = None):
        """Read prompts (R, T) of these lengths, behind a prefix if there is one.

        Returns the hidden states (R, D) that predict each row's next token, the places (R,) where those will be read,
        and what is kept of the rows. `whole_R` is the length that each text will have at most: what a token's angle
        may depend on must be the same in all steps.
        """
        R, T = tokens_RT.shape
        places_RT = jnp.broadcast_to(jnp.arange(T)[None], (R, T))
        x_RTD, kept = self._read(tokens_RT, places_RT, whole_R, self.room(R, T), prefix, fresh=True)
        last_R = jnp.maximum(lengths_R - 1, 0)
        return jnp.take_along_axis(x_RTD, last_R[:, None, None], axis=1)[:, 0], lengths_R, kept

    def extend(self, token_B, place_B, whole_B, kept: KVCache, prefix: Prefix | None = None):
        """Read one more token of each row at its place, and return hidden states (B, D) and what is kept then.

        Of a row whose place lies behind its room nothing is kept.
        """
        x_B1D, kept = self._read(token_B[:, None], place_B[:, None], whole_B, kept, prefix)
        return x_B1D[:, 0], kept

    def _read(self, tokens_BT, places_BT, whole_B, kept: KVCache, prefix: Prefix | None, *, fresh: bool = False):
        """Read tokens into their places: a query sees what lies before its own; padding is overwritten in time."""
        mask_BTS = jnp.arange(kept.length)[None, None] <= places_BT[:, :, None]
        positions_BT = places_BT if prefix is None else places_BT + prefix.length
        whole_B = whole_B if prefix is None else whole_B + prefix.length
        lengths_BT = jnp.broadcast_to(whole_B[:, None], tokens_BT.shape)
        options = {"lengths_BT": lengths_BT, "cache": kept, "prefix": prefix}
        options |= {"segments_BT": jnp.zeros_like(places_BT)} if fresh else {"places_BT": places_BT}
        x_BTD, written = self(tokens_BT, positions_BT, mask_BTS, **options)
        assert written is not None
        return x_BTD, written

    def read_prefix(self, prefix: Prefix, tokens_P: jax.Array, count) -> Prefix:
        """Return a prefix with `count` more tokens, the first of PREFIX_BLOCK; all calls but the last fill a block."""
        assert tokens_P.shape == (PREFIX_BLOCK,)
        zero_1 = jnp.zeros(1, jnp.int32)
        _, _, own = self.begin(tokens_P[None], zero_1, zero_1, prefix)
        return prefix.extended(own, count).constrained(self.build.rules)
