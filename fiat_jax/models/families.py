"""Which Hugging Face architectures we read: config.json to ours, and one table of tensors for both directions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One weight, ours and theirs. Dimensions are single letters; a group in brackets is one dimension in their file.

    Args:
        path: ours, dotted from the model ("blocks.q.w").
        name: theirs, with {layer} where our tensor stacks one of theirs a layer.
        theirs: the dimensions of their tensor, "(H G K) D".
        ours: the dimensions of one layer of ours, "D H G K".
    """

    path: str
    name: str
    theirs: str
    ours: str

    @property
    def stacked(self) -> bool:
        """Whether ours has a leading dimension of layers."""
        return "{layer}" in self.name


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: how its config.json reads, which tensors it has, and how to write its config.json."""

    name: str
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    tensors: tuple[Tensor, ...]

    def present(self, config: DecoderConfig) -> tuple[Tensor, ...]:
        """Return the tensors that a checkpoint of this configuration has."""
        return tuple(t for t in self.tensors if not (t.path == "head" and config.tied_head))

    def modules(self, config: DecoderConfig) -> dict[str, tuple[str, ...]]:
        """Return our name of all that can be adapted ("q", ..., "embed") → the Hugging Face paths of its layers."""
        return {
            t.path.split(".")[-2]: tuple(
                t.name.format(layer=layer).removesuffix(".weight")
                for layer in range(config.num_layers if t.stacked else 1)
            )
            for t in self.tensors
            if t.path.endswith(".w")
        }


def sizes(config: DecoderConfig) -> dict[str, int]:
    """Return the size of every dimension letter."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "F": config.mlp_width,
        "H": config.num_kv_heads,
        "G": config.queries_per_kv_head,
        "K": config.head_dim,
    }


def family_of(hf_config: Mapping[str, Any], where: str) -> Family:
    """Return the family that config.json names."""
    architectures = hf_config.get("architectures") or []
    for architecture in architectures:
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    found = ", ".join(architectures) or "none"
    hint = did_you_mean(found, FAMILIES)
    raise UserError(f"{where} names architecture {found}; we read {', '.join(FAMILIES)}.{hint}")


def _read_llama(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    refuse = {
        "hidden_act": (hf.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (hf.get("attention_bias", False), (False,)),
        "mlp_bias": (hf.get("mlp_bias", False), (False,)),
        "rope type": (rope.get("rope_type", rope.get("type", "default")), ("default",)),
        "quantization_config": (hf.get("quantization_config"), (None,)),
    }
    for name, (value, known) in refuse.items():
        if value not in known:
            raise UserError(f"{where} has {name} {value!r}; for this architecture we read {known[0]!r} alone")
    try:
        heads, width = hf["num_attention_heads"], hf["hidden_size"]
        kv_heads = hf.get("num_key_value_heads") or heads
        head_dim = hf.get("head_dim") or width // heads
        if heads % kv_heads:
            raise UserError(f"{where}: {heads} attention heads are no multiple of {kv_heads} key-value heads")
        return DecoderConfig(
            vocab_size=hf["vocab_size"],
            width=width,
            num_layers=hf["num_hidden_layers"],
            num_kv_heads=kv_heads,
            queries_per_kv_head=heads // kv_heads,
            head_dim=head_dim,
            mlp_width=hf["intermediate_size"],
            max_length=hf.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            tied_head=hf.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"{where} lacks {error}; fetch the checkpoint's config.json again") from None


_LAYER = "model.layers.{layer}."
LLAMA = Family(
    "llama",
    _read_llama,
    (
        Tensor("embed.w", "model.embed_tokens.weight", "V D", "V D"),
        Tensor("blocks.norm_attention.gain", _LAYER + "input_layernorm.weight", "D", "D"),
        Tensor("blocks.q.w", _LAYER + "self_attn.q_proj.weight", "(H G K) D", "D H G K"),
        Tensor("blocks.k.w", _LAYER + "self_attn.k_proj.weight", "(H K) D", "D H K"),
        Tensor("blocks.v.w", _LAYER + "self_attn.v_proj.weight", "(H K) D", "D H K"),
        Tensor("blocks.o.w", _LAYER + "self_attn.o_proj.weight", "D (H G K)", "H G K D"),
        Tensor("blocks.norm_mlp.gain", _LAYER + "post_attention_layernorm.weight", "D", "D"),
        Tensor("blocks.gate.w", _LAYER + "mlp.gate_proj.weight", "F D", "D F"),
        Tensor("blocks.up.w", _LAYER + "mlp.up_proj.weight", "F D", "D F"),
        Tensor("blocks.down.w", _LAYER + "mlp.down_proj.weight", "D F", "F D"),
        Tensor("norm.gain", "model.norm.weight", "D", "D"),
        Tensor("head", "lm_head.weight", "V D", "V D"),
    ),
)
FAMILIES: dict[str, Family] = {"LlamaForCausalLM": LLAMA}
