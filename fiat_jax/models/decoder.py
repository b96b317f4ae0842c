"""A Llama-family decoder: layers stacked and scanned, tokens flattened to rows in every matrix product."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.models.attention import KVCache, attend, soft_cap, visible, within
from fiat_jax.models.experts import Experts
from fiat_jax.models.head import cross_entropy, target_log_probs
from fiat_jax.models.linear import EMBED_AXES, EMBEDDING, WEIGHT_STD, Embedding, Linear, LoraSlot, apply
from fiat_jax.models.rope import Rope, sequence_lengths, turn
from fiat_jax.sharding import TRAIN, ShardingRules, constrain

REMAT_POLICIES = {
    # every matrix product once, what is cheap again: less memory traffic than saving all, and as fast or faster
    "products": jax.checkpoint_policies.save_only_these_names(
        "q", "k", "v", "unnormed", "attended", "projected", "mid", "gate", "up", "down", "low_rank"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Reach:
    """What sets one layer's attention apart from another's: how many positions back it sees, and how it turns them."""

    window: int | None = None
    rope: Rope = dataclasses.field(default_factory=Rope)


EVERYWHERE = Reach()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a checkpoint fixes about a decoder: every family that `families.py` reads is a setting of these.

    Args:
        reaches: the kinds of attention layers; `layer_reaches` is the kind of each layer, or empty: all the first.
        activation: of the gated MLP, a name of `ACTIVATIONS`.
        biased: which of "q", "k", "v", "o", "gate", "up", "down" add a bias.
        fused: "q", "k", "v" are one product, and "gate", "up" another.
        qk_norm: queries and keys of each head are normalised before they are turned.
        sandwich: what attention and MLP put out is normalised too.
        norm_offset: what is added to the gain of every norm.
        embed_scale: what the embedding is multiplied by.
        query_scale: what scores are multiplied by, 1/√head_dim by default.
        attention_cap, logit_cap: soft caps on scores and on logits.
        num_experts, experts_per_token: of a mixture of experts in place of the MLP.
        normalised_experts: the weights of a token's experts sum to 1.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_kv_heads: int
    queries_per_kv_head: int
    head_dim: int
    mlp_width: int
    max_length: int
    norm_eps: float = 1e-6
    tied_head: bool = False
    reaches: tuple[Reach, ...] = (EVERYWHERE,)
    layer_reaches: tuple[int, ...] = ()
    activation: str = "silu"
    biased: frozenset[str] = frozenset()
    fused: bool = False
    qk_norm: bool = False
    sandwich: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    query_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    normalised_experts: bool = True

    @property
    def head_widths(self) -> tuple[int, int, int]:
        """How wide the queries, keys and values of a token are."""
        kv = self.num_kv_heads * self.head_dim
        return kv * self.queries_per_kv_head, kv, kv


@dataclasses.dataclass(frozen=True)
class Build:
    """How a decoder is put together for a purpose: its adapters, dtype, layout and what backward recomputes."""

    slots: tuple[tuple[str, LoraSlot], ...] = ()
    dtype: str = "float32"
    remat: str = "products"
    rules: ShardingRules = TRAIN


class RMSNorm(nnx.Module):
    """x / rms(x) · (offset + gain), in float32; a stack of gains where num_layers is given."""

    def __init__(self, width: int, c: DecoderConfig, dtype, num_layers: int | None = None):
        shape, axes = ((width,), ("norm",)) if num_layers is None else ((num_layers, width), ("layers", "norm"))
        self.gain = nnx.Param(jnp.full(shape, 1 - c.norm_offset, dtype), axes=axes)
        self.eps, self.offset = c.norm_eps, c.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)  # bf16 squares lose the small channels
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + self.eps)
        gain = jnp.expand_dims(self.gain[...], range(x.ndim - 1))
        if self.offset:
            return (normed * (self.offset + gain.astype(jnp.float32))).astype(x.dtype)
        return normed.astype(x.dtype) * gain


class Block(nnx.Module):
    """Attention and a gated MLP or a mixture of them, each behind a norm and a residual."""

    def __init__(self, c: DecoderConfig, build: Build, rngs: nnx.Rngs):
        D, F, H, G, K = c.width, c.mlp_width, c.num_kv_heads, c.queries_per_kv_head, c.head_dim
        slots, dtype = dict(build.slots), jnp.dtype(build.dtype)

        def linear(module, equation, shape, axes):
            options = {"num_layers": c.num_layers, "slot": slots.get(module), "rngs": rngs, "dtype": dtype}
            return Linear(module, equation, shape, axes, bias=module in c.biased, **options)

        def norm(width):
            return RMSNorm(width, c, dtype, c.num_layers)

        self.config, self.rules = c, build.rules
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
            experts = (c.num_experts, c.experts_per_token, c.normalised_experts, ACTIVATIONS[c.activation])
            options = {"num_layers": c.num_layers, "rules": build.rules, "rngs": rngs, "dtype": dtype}
            self.experts = Experts(D, F, *experts, **options)
            return
        if c.fused:
            self.gate_up = linear("gate_up", "ND,DP->NP", (D, 2 * F), ("embed", "fused"))
        else:
            self.gate = linear("gate", "ND,DF->NF", (D, F), ("embed", "mlp"))
            self.up = linear("up", "ND,DF->NF", (D, F), ("embed", "mlp"))
        self.down = linear("down", "NF,FD->ND", (F, D), ("mlp", "embed"))

    def __call__(self, x_ND, rope_BTK, mask_BTS, cache: KVCache | None, layer, slots_BT, dropout_key):
        """Return the block's output and the cache with this layer's keys and values written in place."""
        c, (B, T), key = self.config, mask_BTS.shape[:2], dropout_key

        q_BTHGK, k_BSHK, v_BSHK = self._heads(self.norm_attention(x_ND), rope_BTK, key)
        if cache is not None:
            cache = cache.write(layer, slots_BT, k_BSHK, v_BSHK)
            k_BSHK, v_BSHK = cache.read(layer)
        out_BTHGK = attend(q_BTHGK, k_BSHK, v_BSHK, mask_BTS, scale=c.query_scale, cap=c.attention_cap)
        out_BTHGK = name(out_BTHGK, "attended")
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
        self.norm = RMSNorm(D, config, dtype)
        if not config.tied_head:
            head = WEIGHT_STD * jax.random.normal(rngs.params(), (V, D), dtype)
            self.head = nnx.Param(head, axes=EMBED_AXES)

    def __call__(
        self, tokens_BT, positions_BT, mask_BTS, *, lengths_BT=None, cache=None, slots_BT=None, dropout_key=None
    ):
        """Return hidden states (B, T, D) after the last norm, and the cache.

        mask_BTS says which keys each query sees; without a cache S = T. With a cache (see `KVCache`) the keys of token
        t are written to slot slots_BT[b, t] before they are attended, S is the cache's length, and where layers see a
        window a token's slot is its position. lengths_BT is the length of each token's sequence, that of its row by
        default; few models read it (`Rope.depends_on_length`).
        """
        c, (B, T) = self.config, tokens_BT.shape
        if lengths_BT is None:
            lengths_BT = jnp.broadcast_to(positions_BT.max(axis=1, keepdims=True) + 1, positions_BT.shape)
        keys_BS = positions_BT if cache is None else jnp.arange(mask_BTS.shape[2])[None]
        ropes = [reach.rope.tables(positions_BT, lengths_BT, c.head_dim) for reach in c.reaches]
        masks = [
            mask_BTS if reach.window is None else mask_BTS & within(reach.window, positions_BT, keys_BS)
            for reach in c.reaches
        ]
        ropes, masks = jnp.stack(ropes), jnp.stack(masks)

        x_ND = constrain(self.embed(tokens_BT.reshape(-1), self.build.rules), self.build.rules, "batch", None)
        if c.embed_scale != 1:
            x_ND *= jnp.asarray(c.embed_scale, x_ND.dtype)
        graphdef, stacked = nnx.split(self.blocks)

        def run(carry, inputs):
            x_ND, cache = carry
            layer, reach, block = inputs
            rope_BTK, mask_BTS = (ropes[0], masks[0]) if len(c.reaches) == 1 else (ropes[reach], masks[reach])
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            return nnx.merge(graphdef, block)(x_ND, rope_BTK, mask_BTS, cache, layer, slots_BT, key), None

        run = jax.checkpoint(run, policy=REMAT_POLICIES[self.build.remat], prevent_cse=False)
        reaches = jnp.array(c.layer_reaches or [0] * c.num_layers)
        (x_ND, cache), _ = jax.lax.scan(run, (x_ND, cache), (jnp.arange(c.num_layers), reaches, stacked))
        return self.norm(x_ND).reshape(B, T, c.width), cache

    @property
    def head_VD(self) -> jax.Array:
        """The output matrix, which a tied model shares with the embedding."""
        return self.embed.w[...] if self.config.tied_head else self.head[...]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return float32 logits (B, T, V) of hidden states; use `loss` or `log_probs` where T is long."""
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, self.head_VD, preferred_element_type=jnp.float32)
        return soft_cap(logits_BTV, self.config.logit_cap)

    def target_states(self, batch, dropout_key=None) -> jax.Array:
        """Return the hidden states (B, M, D) whose outputs predict the batch's targets."""
        segments_BT, positions_BT = batch["segments"], batch["positions"]
        mask_BTS, lengths_BT = visible(segments_BT, batch["branches"]), sequence_lengths(segments_BT, positions_BT)
        x_BTD, _ = self(batch["tokens"], positions_BT, mask_BTS, lengths_BT=lengths_BT, dropout_key=dropout_key)
        return jnp.take_along_axis(x_BTD, batch["target_positions"][:, :, None], axis=1)

    def loss(self, batch, dropout_key=None) -> jax.Array:
        """Return the weighted sum of the targets' negative log-probabilities, a float32 scalar."""
        x_BMD = self.target_states(batch, dropout_key)
        return cross_entropy(x_BMD, self.head_VD, batch["targets"], batch["weights"], self.config.logit_cap)

    def log_probs(self, batch) -> jax.Array:
        """Return the float32 log-probability (B, M) of every target, whatever its weight."""
        return target_log_probs(self.target_states(batch), self.head_VD, batch["targets"], self.config.logit_cap)
