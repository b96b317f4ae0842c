"""A Llama-family decoder: layers stacked and scanned, tokens flattened to rows in every matrix product."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.models.attention import KVCache, attend, rope, rope_tables, visible
from fiat_jax.models.head import cross_entropy, target_log_probs
from fiat_jax.models.linear import EMBED_AXES, EMBEDDING, WEIGHT_STD, Embedding, Linear, LoraSlot, apply
from fiat_jax.sharding import TRAIN, ShardingRules, constrain

REMAT_POLICIES = {
    # every matrix product once, what is cheap again: less memory traffic than saving all, and as fast or faster
    "products": jax.checkpoint_policies.save_only_these_names(
        "q", "k", "v", "attended", "mid", "gate", "up", "low_rank"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a checkpoint fixes about a decoder."""

    vocab_size: int
    width: int
    num_layers: int
    num_kv_heads: int
    queries_per_kv_head: int
    head_dim: int
    mlp_width: int
    max_length: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied_head: bool = False


@dataclasses.dataclass(frozen=True)
class Build:
    """How a decoder is put together for a purpose: its adapters, dtype, layout and what backward recomputes."""

    slots: tuple[tuple[str, LoraSlot], ...] = ()
    dtype: str = "float32"
    remat: str = "products"
    rules: ShardingRules = TRAIN


class RMSNorm(nnx.Module):
    """x / rms(x) · gain, in float32; a stack of gains where num_layers is given."""

    def __init__(self, width: int, eps: float, dtype, num_layers: int | None = None):
        shape, axes = ((width,), ("norm",)) if num_layers is None else ((num_layers, width), ("layers", "norm"))
        self.gain = nnx.Param(jnp.ones(shape, dtype), axes=axes)
        self.eps = eps

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        x32_ND = x_ND.astype(jnp.float32)  # bf16 squares lose the small channels
        normed_ND = x32_ND * jax.lax.rsqrt(jnp.mean(x32_ND**2, -1, keepdims=True) + self.eps)
        return normed_ND.astype(x_ND.dtype) * self.gain[...][None]


class Block(nnx.Module):
    """Attention and a gated MLP, each behind a norm and a residual."""

    def __init__(self, c: DecoderConfig, build: Build, rngs: nnx.Rngs):
        D, F, H, G, K = c.width, c.mlp_width, c.num_kv_heads, c.queries_per_kv_head, c.head_dim
        slots, dtype = dict(build.slots), jnp.dtype(build.dtype)

        def linear(module, equation, shape, axes):
            return Linear(
                module, equation, shape, axes, num_layers=c.num_layers, slot=slots.get(module), rngs=rngs, dtype=dtype
            )

        self.rules = build.rules
        self.norm_attention = RMSNorm(D, c.norm_eps, dtype, c.num_layers)
        self.norm_mlp = RMSNorm(D, c.norm_eps, dtype, c.num_layers)
        self.q = linear("q", "ND,DHGK->NHGK", (D, H, G, K), ("embed", "kv_heads", "queries", "head_dim"))
        self.k = linear("k", "ND,DHK->NHK", (D, H, K), ("embed", "kv_heads", "head_dim"))
        self.v = linear("v", "ND,DHK->NHK", (D, H, K), ("embed", "kv_heads", "head_dim"))
        self.o = linear("o", "NHGK,HGKD->ND", (H, G, K, D), ("kv_heads", "queries", "head_dim", "embed"))
        self.gate = linear("gate", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.up = linear("up", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.down = linear("down", "NF,FD->ND", (F, D), ("mlp", "embed"))

    def __call__(self, x_ND, rope_BTK, mask_BTS, cache: KVCache | None, layer, slots_BT, dropout_key):
        """Return the block's output and the cache with this layer's keys and values written in place."""
        (B, T), key = mask_BTS.shape[:2], dropout_key

        normed_ND = self.norm_attention(x_ND)
        q_NHGK, k_NHK, v_NHK = apply((self.q, self.k, self.v), normed_ND, key)
        q_BTHGK = name(rope(q_NHGK.reshape(B, T, *self.q.out_shape), rope_BTK), "q")
        k_BSHK = name(rope(k_NHK.reshape(B, T, *self.k.out_shape), rope_BTK), "k")
        v_BSHK = name(v_NHK.reshape(B, T, *self.v.out_shape), "v")
        if cache is not None:
            cache = cache.write(layer, slots_BT, k_BSHK, v_BSHK)
            k_BSHK, v_BSHK = cache.read(layer)
        out_BTHGK = name(attend(q_BTHGK, k_BSHK, v_BSHK, mask_BTS), "attended")
        x_ND = x_ND + self.o(out_BTHGK.reshape(B * T, *out_BTHGK.shape[2:]), key)
        x_ND = name(constrain(x_ND, self.rules, "batch", None), "mid")

        gate_NF, up_NF = apply((self.gate, self.up), self.norm_mlp(x_ND), key)
        gate_NF, up_NF = name(gate_NF, "gate"), name(up_NF, "up")
        x_ND = x_ND + self.down(jax.nn.silu(gate_NF) * up_NF, key)
        return constrain(x_ND, self.rules, "batch", None), cache


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to log-probabilities. Dimensions: docs/dimensions.md."""

    def __init__(self, config: DecoderConfig, build: Build, rngs: nnx.Rngs):
        V, D, dtype = config.vocab_size, config.width, jnp.dtype(build.dtype)
        self.config, self.build = config, build
        self.embed = Embedding(V, D, slot=dict(build.slots).get(EMBEDDING), rngs=rngs, dtype=dtype)
        self.blocks = Block(config, build, rngs)
        self.norm = RMSNorm(D, config.norm_eps, dtype)
        if not config.tied_head:
            head = WEIGHT_STD * jax.random.normal(rngs.params(), (V, D), dtype)
            self.head = nnx.Param(head, axes=EMBED_AXES)

    def __call__(self, tokens_BT, positions_BT, mask_BTS, *, cache=None, slots_BT=None, dropout_key=None):
        """Return hidden states (B, T, D) after the last norm, and the cache.

        mask_BTS says which keys each query sees; without a cache S = T. With a cache (see `KVCache`) the keys of token
        t are written to slot slots_BT[b, t] before they are attended, and S is the cache's length.
        """
        c, (B, T) = self.config, tokens_BT.shape
        rope_BTK = rope_tables(positions_BT, c.head_dim, c.rope_theta)
        x_ND = constrain(self.embed(tokens_BT.reshape(-1), self.build.rules), self.build.rules, "batch", None)
        graphdef, stacked = nnx.split(self.blocks)

        def run(carry, inputs):
            x_ND, cache = carry
            layer, block = inputs
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            return nnx.merge(graphdef, block)(x_ND, rope_BTK, mask_BTS, cache, layer, slots_BT, key), None

        run = jax.checkpoint(run, policy=REMAT_POLICIES[self.build.remat], prevent_cse=False)
        (x_ND, cache), _ = jax.lax.scan(run, (x_ND, cache), (jnp.arange(c.num_layers), stacked))
        return self.norm(x_ND).reshape(B, T, c.width), cache

    @property
    def head_VD(self) -> jax.Array:
        """The output matrix, which a tied model shares with the embedding."""
        return self.embed.w[...] if self.config.tied_head else self.head[...]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return float32 logits (B, T, V) of hidden states; use `loss` or `log_probs` where T is long."""
        return jnp.einsum("BTD,VD->BTV", x_BTD, self.head_VD, preferred_element_type=jnp.float32)

    def target_states(self, batch, dropout_key=None) -> jax.Array:
        """Return the hidden states (B, M, D) whose outputs predict the batch's targets."""
        mask_BTS = visible(batch["segments"], batch["branches"])
        x_BTD, _ = self(batch["tokens"], batch["positions"], mask_BTS, dropout_key=dropout_key)
        return jnp.take_along_axis(x_BTD, batch["target_positions"][:, :, None], axis=1)

    def loss(self, batch, dropout_key=None) -> jax.Array:
        """Return the weighted sum of the targets' negative log-probabilities, a float32 scalar."""
        x_BMD = self.target_states(batch, dropout_key)
        return cross_entropy(x_BMD, self.head_VD, batch["targets"], batch["weights"])

    def log_probs(self, batch) -> jax.Array:
        """Return the float32 log-probability (B, M) of every target, whatever its weight."""
        return target_log_probs(self.target_states(batch), self.head_VD, batch["targets"])
