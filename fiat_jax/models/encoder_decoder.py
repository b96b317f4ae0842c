"""T5's encoder-decoder (arXiv 1910.10683, 2002.05202): stacks scanned, tokens flattened to rows in every product."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.models.attention import KVCache, attend, attend_kept, visible
from fiat_jax.models.config import Build, EncoderDecoderConfig
from fiat_jax.models.linear import EMBED_AXES, WEIGHT_STD, Linear, apply
from fiat_jax.models.stack import ACTIVATIONS, RMSNorm, scan_layers
from fiat_jax.sharding import ShardingRules, constrain


class Block(nnx.Module):
    """Attention, in the decoder also attention to what the encoder read, and an MLP: each behind a norm."""

    def __init__(self, stack: str, c: EncoderDecoderConfig, build: Build, rngs: nnx.Rngs):
        D, F, H, K, layers = c.width, c.mlp_width, c.num_heads, c.head_dim, c.depths[stack]
        slots, dtype = dict(build.slots), jnp.dtype(build.dtype)

        def linear(module, equation, shape, axes):
            slot = slots.get(f"{stack}.{module}")
            return Linear(module, equation, shape, axes, num_layers=layers, slot=slot, rngs=rngs, dtype=dtype)

        def heads(module):
            return linear(module, "ND,DHK->NHK", (D, H, K), ("embed", "kv_heads", "head_dim"))

        def joined(module):
            return linear(module, "NHK,HKD->ND", (H, K, D), ("kv_heads", "head_dim", "embed"))

        def norm():
            return RMSNorm(D, eps=c.norm_eps, dtype=dtype, num_layers=layers)

        self.config, self.rules = c, build.rules
        self.norm_attention, self.norm_mlp = norm(), norm()
        self.q, self.k, self.v, self.o = heads("q"), heads("k"), heads("v"), joined("o")
        if stack == "decoder":
            self.norm_cross = norm()
            self.cross_q, self.cross_k, self.cross_v = heads("cross_q"), heads("cross_k"), heads("cross_v")
            self.cross_o = joined("cross_o")
        if c.gated:
            self.gate = linear("gate", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.up = linear("up", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.down = linear("down", "NF,FD->ND", (F, D), ("mlp", "embed"))

    def attention(self, x_ND, mask_BTS, bias_BHTS, key, *, causal, cache=None, layer=None, places_BT=None):
        """Return x with what its tokens see of each other added, and the cache with this layer's written."""
        (B, T), (H, K) = mask_BTS.shape[:2], self.q.out_shape
        q, k, v = apply((self.q, self.k, self.v), self.norm_attention(x_ND), key)
        q_BTHGK, k_BSHK, v_BSHK = q.reshape(B, T, H, 1, K), k.reshape(B, T, H, K), v.reshape(B, T, H, K)
        q_BTHGK, k_BSHK, v_BSHK = name(q_BTHGK, "q"), name(k_BSHK, "k"), name(v_BSHK, "v")
        options = {"scale": 1.0, "bias_BHTS": bias_BHTS}
        if cache is None:
            out_BTHGK = attend(q_BTHGK, k_BSHK, v_BSHK, mask_BTS, causal=causal, **options)
        else:
            cache = cache.write(layer, places_BT, k_BSHK, v_BSHK)
            out_BTHGK = attend_kept(q_BTHGK, (*cache.read(layer), mask_BTS), **options)
        x_ND = x_ND + self.o(name(out_BTHGK, "attended").reshape(B * T, H, K), key)
        return name(constrain(x_ND, self.rules, "batch", None), "mid"), cache

    def memory(self, encoded_BSD, key):
        """Return this layer's keys and values (B, S, H, K) of what the encoder read."""
        B, S, D = encoded_BSD.shape
        k, v = apply((self.cross_k, self.cross_v), encoded_BSD.reshape(B * S, D), key)
        return tuple(name(x.reshape(B, S, *self.cross_k.out_shape), kind) for x, kind in ((k, "k"), (v, "v")))

    def cross_attention(self, x_ND, mask_BTS, key, *, encoded_BSD=None, kept=None):
        """Return x with what its tokens see of the encoder's added: of its output, or of what is kept of that."""
        (B, T), (H, K) = mask_BTS.shape[:2], self.cross_q.out_shape
        q_BTHGK = name(self.cross_q(self.norm_cross(x_ND), key).reshape(B, T, H, 1, K), "q")
        if kept is None:
            k_BSHK, v_BSHK = self.memory(encoded_BSD, key)
            out_BTHGK = attend(q_BTHGK, k_BSHK, v_BSHK, mask_BTS, scale=1.0, causal=False)
        else:
            out_BTHGK = attend_kept(q_BTHGK, (*kept, mask_BTS), scale=1.0)
        out_BTHGK = name(out_BTHGK, "attended")
        x_ND = x_ND + self.cross_o(out_BTHGK.reshape(B * T, H, K), key)
        return name(constrain(x_ND, self.rules, "batch", None), "mid")

    def mlp(self, x_ND, key):
        """Return x with the MLP's output added."""
        normed_ND, activation = self.norm_mlp(x_ND), ACTIVATIONS[self.config.activation]
        if self.config.gated:
            gate_NF, up_NF = apply((self.gate, self.up), normed_ND, key)
            hidden_NF = activation(name(gate_NF, "gate")) * name(up_NF, "up")
        else:
            hidden_NF = activation(name(self.up(normed_ND, key), "up"))
        return constrain(x_ND + self.down(hidden_NF, key), self.rules, "batch", None)


class EncoderDecoder(nnx.Module):
    """Tokens read by the encoder, and tokens that the decoder writes after them. Dimensions: docs/dimensions.md."""

    def __init__(self, config: EncoderDecoderConfig, build: Build, rngs: nnx.Rngs):
        V, D, H, dtype = config.vocab_size, config.width, config.num_heads, jnp.dtype(build.dtype)
        self.config, self.build = config, build

        def weight(shape, axes):
            return nnx.Param(WEIGHT_STD * jax.random.normal(rngs.params(), shape, dtype), axes=axes)

        self.table = weight((V, D), EMBED_AXES)
        self.encoder, self.decoder = (Block(stack, config, build, rngs) for stack in ("encoder", "decoder"))
        self.encoder_bias = weight((config.num_buckets, H), (None, "kv_heads"))
        self.decoder_bias = weight((config.num_buckets, H), (None, "kv_heads"))
        self.encoder_norm, self.decoder_norm = (RMSNorm(D, eps=config.norm_eps, dtype=dtype) for _ in range(2))
        if not config.tied_head:
            self.head = weight((V, D), EMBED_AXES)

    def encode(self, tokens_BS, segments_BS, dropout_key=None) -> jax.Array:
        """Return what the encoder makes of packed texts (B, S, D): tokens see those of their own segment."""
        (B, S), c = tokens_BS.shape, self.config
        mask_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
        offsets_1SS = jnp.arange(S)[None, None, :] - jnp.arange(S)[None, :, None]  # of one text, and so of all
        bias_1HSS = self._bias(self.encoder_bias, offsets_1SS, bidirectional=True)

        def run(x_ND, block, layer, key):
            x_ND, _ = block.attention(x_ND, mask_BSS, bias_1HSS, key, causal=False)
            return block.mlp(x_ND, key)

        x_ND = scan_layers(run, self._embed(tokens_BS), self.encoder, c.num_layers, self.build.remat, dropout_key)
        return self.encoder_norm(x_ND).reshape(B, S, c.width)

    def decode(
        self, tokens_BT, positions_BT, mask_BTS, cross_mask_BTS, *, encoded_BSD=None, memory=None, cache=None, key=None
    ):
        """Return hidden states (B, T, D) as the head reads them, and the cache.

        The decoder attends to `encoded_BSD`, or to its keys and values of all layers, `memory`. With a cache the keys
        of a token are written to the slot of its position before they are attended, and S is the cache's length.
        """
        (B, T), c = tokens_BT.shape, self.config
        keys_BS = positions_BT if cache is None else jnp.arange(mask_BTS.shape[2])[None]
        offsets_BTS = keys_BS[:, None, :] - positions_BT[:, :, None]
        bias_BHTS = self._bias(self.decoder_bias, offsets_BTS, bidirectional=False)

        def run(carry, block, layer, key):
            x_ND, cache = carry
            options = {"cache": cache, "layer": layer, "places_BT": positions_BT, "causal": cache is None}
            x_ND, cache = block.attention(x_ND, mask_BTS, bias_BHTS, key, **options)
            read = {"encoded_BSD": encoded_BSD} if memory is None else {"kept": memory.read(layer)}
            return block.mlp(block.cross_attention(x_ND, cross_mask_BTS, key, **read), key), cache

        carry = (self._embed(tokens_BT), cache)
        x_ND, cache = scan_layers(run, carry, self.decoder, c.num_decoder_layers, self.build.remat, key)
        return self.decoder_norm(x_ND).reshape(B, T, c.width) * jnp.asarray(c.head_scale, x_ND.dtype), cache

    def _embed(self, tokens_BT):
        table_VD = constrain(self.table[...], self.build.rules, "vocab", None)
        return constrain(table_VD[tokens_BT.reshape(-1)], self.build.rules, "batch", None)

    def _bias(self, table, offsets_BTS, *, bidirectional: bool) -> jax.Array:
        """Return what is added to scores (B, H, T, S) for how far a key lies from its query."""
        c = self.config
        buckets = jnp.asarray(bucket_table(c.num_buckets, c.max_distance, bidirectional=bidirectional))
        bias_BTSH = table[...][buckets[jnp.clip(offsets_BTS, -c.max_distance, c.max_distance) + c.max_distance]]
        return bias_BTSH.transpose(0, 3, 1, 2)

    @property
    def head_VD(self) -> jax.Array:
        """The output matrix, which a tied model shares with the embedding."""
        return self.table[...] if self.config.tied_head else self.head[...]

    def target_states(self, batch, dropout_key=None) -> jax.Array:
        """Return the hidden states (B, M, D) whose outputs predict the batch's targets (`EncoderDecoderLayout`)."""
        read_key, write_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        segments_BT = batch["decoder_segments"]
        x_BTD, _ = self.decode(
            batch["decoder_tokens"],
            batch["decoder_positions"],
            visible(segments_BT, batch.get("decoder_branches")),
            segments_BT[:, :, None] == batch["segments"][:, None, :],
            encoded_BSD=self.encode(batch["tokens"], batch["segments"], read_key),
            key=write_key,
        )
        return jnp.take_along_axis(x_BTD, batch["target_positions"][:, :, None], axis=1)

    def plain_states(self, tokens_BT: jax.Array) -> jax.Array:
        """Return the hidden states (B, T, D) of rows that each hold one text, read and then written again."""
        B, T = tokens_BT.shape
        return self.written_states(tokens_BT, jnp.full(B, T, jnp.int32), tokens_BT)

    def written_states(self, read_BS: jax.Array, lengths_B: jax.Array, written_BT: jax.Array) -> jax.Array:
        """Return the hidden states (B, T, D) that predict every token written, by rows that read texts of lengths."""
        (B, S), (_, T) = read_BS.shape, written_BT.shape
        segments_BS = (jnp.arange(S)[None] < lengths_B[:, None]).astype(jnp.int32)
        ones_BT, positions_BT = jnp.ones((B, T), jnp.int32), jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        before_BT = jnp.concatenate([jnp.full_like(written_BT[:, :1], self.config.start_id), written_BT[:, :-1]], 1)
        masks = visible(ones_BT, ones_BT), jnp.broadcast_to(segments_BS[:, None] == 1, (B, T, S))
        return self.decode(before_BT, positions_BT, *masks, encoded_BSD=self.encode(read_BS, segments_BS))[0]

    def room(self, rows: int, length: int) -> "Kept":
        """Return what is kept of texts of up to `length` tokens that are read, and as many written; of none so far."""
        c, dtype = self.config, jnp.dtype(self.build.dtype)
        dims = (c.num_decoder_layers, rows, length, c.num_heads, c.head_dim)
        empty = KVCache.zeros(*dims, dtype=dtype, rules=self.build.rules)
        return Kept(empty, empty, jnp.zeros(rows, jnp.int32))

    def begin(self, tokens_RS, lengths_R, whole_R, prefix: None = None):
        """Read prompts (R, S) of these lengths, and write the start token.

        Returns the hidden states (R, D) that predict each row's first token, the places (R,) where it will be read,
        and what is kept of the rows. `whole_R` is not needed; an encoder's text has no prefix that others share.
        """
        assert prefix is None
        (R, S), c = tokens_RS.shape, self.config
        encoded_RSD = self.encode(tokens_RS, (jnp.arange(S)[None] < lengths_R[:, None]).astype(jnp.int32))

        def run(memory, block, layer, key):
            return memory.put(layer, *block.memory(encoded_RSD, None))

        kept = self.room(R, S)
        memory = scan_layers(run, kept.memory, self.decoder, c.num_decoder_layers, "none", None)
        first_R, place_R = jnp.full((R,), c.start_id, jnp.int32), jnp.zeros(R, jnp.int32)
        x_RD, kept = self.extend(first_R, place_R, whole_R, Kept(kept.cache, memory, lengths_R))
        return x_RD, place_R + 1, kept

    def extend(self, token_B, place_B, whole_B, kept: "Kept", prefix: None = None):
        """Read one more token of each row at its place, and return hidden states (B, D) and what is kept then.

        Of a row whose place lies behind its room nothing is kept.
        """
        del whole_B, prefix
        mask_B1S = jnp.arange(kept.cache.length)[None, None] <= place_B[:, None, None]
        read_B1S = jnp.arange(kept.memory.length)[None, None] < kept.read_B[:, None, None]
        options = {"memory": kept.memory, "cache": kept.cache}
        x_B1D, cache = self.decode(token_B[:, None], place_B[:, None], mask_B1S, read_B1S, **options)
        return x_B1D[:, 0], Kept(cache, kept.memory, kept.read_B)


@struct.dataclass
class Kept:
    """Keys and values of what the decoder wrote and of what the encoder read, and how many of the latter (B,)."""

    cache: KVCache
    memory: KVCache
    read_B: jax.Array

    def put_rows(self, rows_C: jax.Array, other: "Kept", source_C: jax.Array) -> "Kept":
        """Put rows of another in place of these; rows behind the last are none."""
        return Kept(
            self.cache.put_rows(rows_C, other.cache, source_C),
            self.memory.put_rows(rows_C, other.memory, source_C),
            self.read_B.at[rows_C].set(other.read_B[source_C], mode="drop"),
        )

    def constrained(self, rules: ShardingRules) -> "Kept":
        """Return it laid out by the rules."""
        return Kept(self.cache.constrained(rules), self.memory.constrained(rules), self.read_B)


def bucket_table(num_buckets: int, max_distance: int, *, bidirectional: bool) -> np.ndarray:
    """Return the bucket of every offset (key less query) from -max_distance to max_distance: int32.

    Near offsets have one each, far ones share them in logarithmic steps (arXiv 1910.10683, section 2.1); without
    `bidirectional` keys behind the query, which it does not see, count as its own.
    """
    offsets = np.arange(-max_distance, max_distance + 1)
    per_side = num_buckets // 2 if bidirectional else num_buckets
    side = np.where(offsets > 0, per_side, 0) if bidirectional else 0
    distance = np.abs(offsets) if bidirectional else np.maximum(-offsets, 0)
    near = per_side // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / near) / np.float32(np.log(max_distance / near))
    far = near + (ratio * (per_side - near)).astype(np.int32)
    return (side + np.where(distance < near, distance, np.minimum(far, per_side - 1))).astype(np.int32)
