"""What a checkpoint fixes about a model, and how a model is put together for a purpose."""

import dataclasses
from collections.abc import Mapping

from fiat_jax.models.kernels import PLAIN, Kernel
from fiat_jax.models.linear import LoraSlot
from fiat_jax.models.rope import Rope
from fiat_jax.sharding import TRAIN, ShardingRules


@dataclasses.dataclass(frozen=True)
class Reach:
    """What sets one layer's attention apart from another's: how many positions back it sees, and how it turns them."""

    window: int | None = None
    rope: Rope = dataclasses.field(default_factory=Rope)


EVERYWHERE = Reach()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a checkpoint fixes about a decoder: every family of `decoder_families.py` is a setting of these.

    Args:
        reaches: the kinds of attention layers; `layer_reaches` is the kind of each layer, or empty: all the first.
        activation: of the gated MLP, a name of `stack.ACTIVATIONS`.
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

    @property
    def depths(self) -> Mapping[str, int]:
        """How many layers each stack has."""
        return {"blocks": self.num_layers}

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of every dimension letter in the tables of tensors."""
        return {
            "V": self.vocab_size,
            "D": self.width,
            "F": self.mlp_width,
            "H": self.num_kv_heads,
            "G": self.queries_per_kv_head,
            "K": self.head_dim,
            "E": self.num_experts,
            "P": sum(self.head_widths),
            "U": 2 * self.mlp_width,
        }


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """What a checkpoint fixes about an encoder-decoder: T5 and its descendants are settings of these.

    Args:
        num_layers, num_decoder_layers: of the encoder and of the decoder.
        num_buckets, max_distance: of the relative positions; offsets from max_distance on share the last bucket.
        activation: of the MLP, a name of `stack.ACTIVATIONS`; `gated`: its output is multiplied by a second product.
        head_scale: what hidden states are multiplied by before the head.
        start_id: the token behind which the decoder writes.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int
    mlp_width: int
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    activation: str = "gelu_tanh"
    gated: bool = True
    tied_head: bool = False
    head_scale: float = 1.0
    start_id: int = 0
    logit_cap: None = None
    max_length: None = None  # relative positions know no longest text

    @property
    def depths(self) -> Mapping[str, int]:
        """How many layers each stack has."""
        return {"encoder": self.num_layers, "decoder": self.num_decoder_layers}

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of every dimension letter in the tables of tensors; N counts buckets."""
        return {
            "V": self.vocab_size,
            "D": self.width,
            "F": self.mlp_width,
            "H": self.num_heads,
            "K": self.head_dim,
            "N": self.num_buckets,
        }


@dataclasses.dataclass(frozen=True)
class Build:
    """How a model is put together for a purpose: its adapters, dtype, layout, kernel, and what backward recomputes."""

    slots: tuple[tuple[str, LoraSlot], ...] = ()  # by the path of a module, "blocks.q"
    dtype: str = "float32"
    remat: str = "products"
    rules: ShardingRules = TRAIN
    kernel: Kernel = PLAIN


Config = DecoderConfig | EncoderDecoderConfig
