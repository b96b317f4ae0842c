"""Which Hugging Face architectures we read: config.json to ours, and one table of tensors for both directions."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.decoder import DecoderConfig, Reach
from fiat_jax.models.rope import KINDS, Rope


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One weight, ours and theirs. Dimensions are single letters; a group in brackets is one dimension in their file.

    Args:
        path: ours, dotted from the model ("blocks.q.w").
        name: theirs, with {layer} where our tensor stacks one of theirs a layer, and {expert} where one an expert.
        theirs: the dimensions of their tensor, "(H G K) D".
        ours: the dimensions of one layer of ours, "D H G K"; experts come first.
        when: which configurations have it; all by default.
    """

    path: str
    name: str
    theirs: str
    ours: str
    when: Callable[[DecoderConfig], bool] = lambda config: True

    @property
    def stacked(self) -> bool:
        """Whether ours has a leading dimension of layers."""
        return "{layer}" in self.name

    @property
    def dims(self) -> list[str]:
        """The dimensions of what is one tensor of theirs, in our order."""
        return [dim for dim in self.ours.split() if not (dim == "E" and self.of_experts)]

    @property
    def of_experts(self) -> bool:
        """Whether ours has a dimension of experts that theirs lacks."""
        return "{expert}" in self.name

    def names(self, layer: int, config: DecoderConfig) -> list[str]:
        """Return their names of what one layer of ours holds: one, or one an expert."""
        return [self.name.format(layer=layer, expert=e) for e in range(config.num_experts if self.of_experts else 1)]


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: how its config.json reads, and which tensors it has."""

    name: str
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    tensors: tuple[Tensor, ...]

    def present(self, config: DecoderConfig) -> tuple[Tensor, ...]:
        """Return the tensors that a checkpoint of this configuration has."""
        return tuple(t for t in self.tensors if t.when(config))

    def modules(self, config: DecoderConfig) -> dict[str, tuple[str, ...]]:
        """Return our name of all that can be adapted ("q", ..., "embed") → the Hugging Face paths of its layers."""
        return {
            t.path.split(".")[-2]: tuple(
                t.name.format(layer=layer).removesuffix(".weight")
                for layer in range(config.num_layers if t.stacked else 1)
            )
            for t in self.present(config)
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
        "E": config.num_experts,
        "P": sum(config.head_widths),
        "U": 2 * config.mlp_width,
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


ACTIVATION_NAMES = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


class _Reader:
    """The entries of one config.json, in old and new spellings."""

    def __init__(self, hf: Mapping[str, Any], where: str, *, eps: float = 1e-6, theta: float = 10_000.0):
        self.hf, self.where, self.eps, self.theta = hf, where, eps, theta

    def __getitem__(self, name: str) -> Any:
        if self.hf.get(name) is None:
            raise UserError(f"{self.where} lacks {name!r}; fetch the checkpoint's config.json again")
        return self.hf[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.hf.get(name)
        return default if value is None else value

    def require(self, name: str, known: Sequence[Any], default: Any = None) -> Any:
        """Return an entry, which must be one that we follow."""
        value = self.get(name, default)
        if value not in known:
            read = " or ".join(repr(k) for k in known)
            raise UserError(f"{self.where} has {name} {value!r}; for this architecture we read {read} alone")
        return value

    def sizes(self, **overrides: Any) -> dict[str, Any]:
        """Return what every decoder has."""
        self.require("quantization_config", (None,))
        heads, width = self["num_attention_heads"], self["hidden_size"]
        kv_heads = self.get("num_key_value_heads", heads)
        if heads % kv_heads:
            raise UserError(f"{self.where}: {heads} attention heads are no multiple of {kv_heads} key-value heads")
        found = {
            "vocab_size": self["vocab_size"],
            "width": width,
            "num_layers": self["num_hidden_layers"],
            "num_kv_heads": kv_heads,
            "queries_per_kv_head": heads // kv_heads,
            "head_dim": self.get("head_dim", width // heads),
            "mlp_width": self["intermediate_size"],
            "max_length": self.get("max_position_embeddings", 2048),
            "norm_eps": self.get("rms_norm_eps", self.eps),
            "tied_head": self.get("tie_word_embeddings", False),
        }
        return found | overrides

    def activation(self, name: str = "hidden_act", default: str = "silu") -> str:
        return ACTIVATION_NAMES[self.require(name, tuple(ACTIVATION_NAMES), default)]

    def rope(
        self, named: Mapping[str, Any] | None = None, *, renamed: Mapping[str, str] | None = None, in_part: bool = False
    ) -> Rope:
        """Return the positions that are `named`, by default those of all layers.

        `renamed` maps kinds to those of the field; `in_part`: whether heads may be turned in part.
        """
        everywhere: Mapping[str, Any] = self.get("rope_scaling") or self.get("rope_parameters") or {}
        hf = everywhere if named is None else named
        kind = hf.get("rope_type", hf.get("type")) or "default"
        kind = (renamed or {}).get(kind, kind)
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS)
            raise UserError(f"{self.where} has rope type {kind!r}; we read {', '.join(KINDS)}.{hint}")
        base = float(hf.get("rope_theta") or self.get("rope_theta", self.theta))
        share = float(hf.get("partial_rotary_factor") or self.get("partial_rotary_factor", 1.0))
        if share != 1 and not in_part:
            raise UserError(f"{self.where} has partial_rotary_factor {share}; for this architecture we read 1.0 alone")
        plain = Rope(theta=base, share=share)
        if kind == "default":
            return plain
        longest = self.get("max_position_embeddings", 2048)
        original = self.get("original_max_position_embeddings") or hf.get("original_max_position_embeddings") or longest
        original = longest if kind == "dynamic" else original
        if kind in ("linear", "dynamic", "llama3") and not hf.get("factor"):
            raise UserError(f"{self.where} has rope type {kind!r} without 'factor'; fetch it again")
        factor = hf.get("factor") or longest / original
        stretched = dataclasses.replace(plain, kind=kind, factor=float(factor), original_length=int(original))
        match kind:
            case "llama3":
                low, high = float(hf.get("low_freq_factor") or 1.0), float(hf.get("high_freq_factor") or 4.0)
                return dataclasses.replace(stretched, low_frequency=low, high_frequency=high)
            case "yarn":
                return dataclasses.replace(
                    stretched,
                    beta_fast=float(hf.get("beta_fast") or 32),
                    beta_slow=float(hf.get("beta_slow") or 1),
                    truncate=bool(hf.get("truncate", True)),
                    magnitude=_magnitude(kind, hf, factor, original),
                )
            case "longrope":
                pairs = plain.turned(self.sizes()["head_dim"]) // 2
                return dataclasses.replace(
                    stretched,
                    magnitude=_magnitude(kind, hf, factor, original),
                    short_factors=self._factors(hf, "short_factor", pairs),
                    long_factors=self._factors(hf, "long_factor", pairs),
                )
        return stretched

    def _factors(self, hf: Mapping[str, Any], name: str, pairs: int) -> tuple[float, ...]:
        found = hf.get(name) or ()
        if len(found) != pairs:
            raise UserError(
                f"{self.where} has rope type 'longrope' with {len(found)} numbers in {name}; its heads turn {pairs} "
                "pairs of dimensions: fetch it again"
            )
        return tuple(map(float, found))

    def reaches(self, window: int | None, types: Sequence[str], ropes: Mapping[str, Rope]) -> dict[str, Any]:
        """Return the kinds of layers, and the kind of each."""
        for layer_type in types:
            if layer_type not in ropes:
                raise UserError(f"{self.where} has a layer of type {layer_type!r}; we read {', '.join(ropes)}")
        if len(types) != self["num_hidden_layers"]:
            raise UserError(f"{self.where} has {self['num_hidden_layers']} layers and {len(types)} layer_types")
        kinds = {t: Reach(window if t == LOCAL else None, ropes[t]) for t in dict.fromkeys(types)}
        distinct = tuple(dict.fromkeys(kinds.values()))
        if len(distinct) == 1:
            return {"reaches": distinct}
        return {"reaches": distinct, "layer_reaches": tuple(distinct.index(kinds[t]) for t in types)}


def _magnitude(kind: str, hf: Mapping[str, Any], factor: float, original: int) -> float:
    """Return what cosines and sines are multiplied by, as the methods' papers propose where config.json is silent."""
    if hf.get("attention_factor") is not None:
        return float(hf["attention_factor"])
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    scale = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    m, m_all = hf.get("mscale"), hf.get("mscale_all_dim")
    return scale(m) / scale(m_all) if m and m_all else scale(1.0)


def _read_llama(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    read = _Reader(hf, where)
    attention = {"q", "k", "v", "o"} if read.get("attention_bias", False) else set()
    mlp = {"gate", "up", "down"} if read.get("mlp_bias", False) else set()
    rope = read.rope()
    return DecoderConfig(
        **read.sizes(), activation=read.activation(), biased=frozenset(attention | mlp), reaches=(Reach(None, rope),)
    )


def _read_mistral(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    read = _Reader(hf, where)
    window = hf.get("sliding_window", 4096)  # absent and null differ: null is none
    return DecoderConfig(**read.sizes(), activation=read.activation(), reaches=(Reach(window, read.rope()),))


def _read_qwen(hf: Mapping[str, Any], where: str, *, third: bool) -> DecoderConfig:
    """Read Qwen 2, 2.5 and 3."""
    read = _Reader(hf, where)
    biased = (
        {"q", "k", "v", "o"} if third and read.get("attention_bias", False) else set() if third else {"q", "k", "v"}
    )
    window = hf.get("sliding_window", 4096) if read.get("use_sliding_window", False) else None
    layers, first_local = read["num_hidden_layers"], read.get("max_window_layers", 28)
    by_default = [LOCAL if window is not None and i >= first_local else GLOBAL for i in range(layers)]
    rope = read.rope()
    sizes = read.sizes(**({"head_dim": read.get("head_dim", 128)} if third else {}))
    return DecoderConfig(
        **sizes,
        **read.reaches(window, read.get("layer_types", by_default), {LOCAL: rope, GLOBAL: rope}),
        activation=read.activation(),
        biased=frozenset(biased),
        qk_norm=third,
    )


def _read_gemma(hf: Mapping[str, Any], where: str, *, generation: int) -> DecoderConfig:
    """Read Gemma 1 to 3."""
    read = _Reader(hf, where)
    read.require("use_bidirectional_attention", (False,), False)
    activation = "hidden_activation" if read.get("hidden_activation") else "hidden_act"
    common: dict[str, Any] = {
        **read.sizes(head_dim=read.get("head_dim", 256), tied_head=read.get("tie_word_embeddings", True)),
        "activation": read.activation(activation, "gelu_pytorch_tanh"),
        "biased": frozenset({"q", "k", "v", "o"} if read.get("attention_bias", False) else ()),
        "norm_offset": 1.0,
        "embed_scale": math.sqrt(read["hidden_size"]),
    }
    if generation == 1:
        # "gelu" is a slip of its first files: the model was trained with the other
        common["activation"] = {"gelu": "gelu_tanh"}.get(common["activation"], common["activation"])
        return DecoderConfig(**common, reaches=(Reach(None, read.rope()),))
    layers, every = range(read["num_hidden_layers"]), 2 if generation == 2 else read.get("sliding_window_pattern", 6)
    types = read.get("layer_types", [LOCAL if (i + 1) % every else GLOBAL for i in layers])
    if generation == 2:
        ropes: dict[str, Rope] = dict.fromkeys((LOCAL, GLOBAL), read.rope())
        caps = ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)
    else:
        ropes = _gemma3_ropes(read)
        read.require("attn_logit_softcapping", (None,))
        caps = ("attn_logit_softcapping", None), ("final_logit_softcapping", None)
    attention_cap, logit_cap = (hf.get(name, default) for name, default in caps)
    return DecoderConfig(
        **common,
        **read.reaches(hf.get("sliding_window", 4096), types, ropes),
        qk_norm=generation == 3,
        sandwich=True,
        query_scale=read.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_cap=attention_cap,
        logit_cap=logit_cap,
    )


def _gemma3_ropes(read: _Reader) -> dict[str, Rope]:
    """Return the positions of local and global layers, which old files write in other places than new ones."""
    new = read.get("rope_parameters", {})
    of = {kind: dict(new.get(kind) or {}) for kind in (LOCAL, GLOBAL)} if LOCAL in new or GLOBAL in new else {}
    everywhere = {} if of else new
    global_ = {
        "rope_theta": read.get("rope_theta", 1e6),
        **everywhere,
        **of.get(GLOBAL, {}),
        **read.get("rope_scaling", {}),
    }
    local = {"rope_theta": read.get("rope_local_base_freq", 1e4), **of.get(LOCAL, {})}
    return {LOCAL: read.rope(local), GLOBAL: read.rope(global_)}


def _read_phi3(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    read = _Reader({"original_max_position_embeddings": 4096, **hf}, where, eps=1e-5)
    rope = read.rope(renamed={"su": "longrope", "yarn": "longrope"}, in_part=True)
    reaches = (Reach(hf.get("sliding_window"), rope),)
    return DecoderConfig(**read.sizes(), activation=read.activation(), reaches=reaches, fused=True)


def _read_mixture(hf: Mapping[str, Any], where: str, *, qwen: bool) -> DecoderConfig:
    """Read Mixtral and Qwen3-MoE."""
    read = _Reader(hf, where) if qwen else _Reader(hf, where, eps=1e-5, theta=1e6)
    if qwen:
        read.require("decoder_sparse_step", (1,), 1)
        read.require("mlp_only_layers", ([],), [])
    window = hf.get("sliding_window", 4096 if qwen else None)
    window = window if not qwen or read.get("use_sliding_window", False) else None
    return DecoderConfig(
        **read.sizes(**({"mlp_width": read["moe_intermediate_size"]} if qwen else {})),
        reaches=(Reach(window, read.rope()),),
        activation=read.activation(),
        biased=frozenset({"q", "k", "v", "o"} if qwen and read.get("attention_bias", False) else ()),
        qk_norm=qwen,
        num_experts=read.get("num_local_experts") or read["num_experts"],
        experts_per_token=read["num_experts_per_tok"],
        normalised_experts=read.get("norm_topk_prob", False) if qwen else True,
    )


_LAYER, _ATTENTION, _MLP = (f"model.layers.{{layer}}.{part}" for part in ("", "self_attn.", "mlp."))


def _linear(module: str, theirs: str, theirs_dims: str, ours_dims: str, fused: bool | None = None) -> list[Tensor]:
    """Return a linear layer's weight and bias; `fused`: in which layout it is there, or None: in both."""
    of_mlp = module in ("gate", "up", "gate_up", "down")
    outputs = re.match(r"\(.*?\)|\w", theirs_dims)
    assert outputs is not None, theirs_dims

    def there(c: DecoderConfig) -> bool:
        return fused in (None, c.fused) and not (of_mlp and c.num_experts)

    return [
        Tensor(f"blocks.{module}.w", f"{theirs}.weight", theirs_dims, ours_dims, there),
        Tensor(
            f"blocks.{module}.bias",
            f"{theirs}.bias",
            outputs[0],
            outputs[0].strip("()"),
            lambda c: there(c) and module in c.biased,
        ),
    ]


def _norm(path: str, theirs: str, when: Callable[[DecoderConfig], bool] = lambda c: True, dims: str = "D") -> Tensor:
    return Tensor(f"blocks.{path}.gain", f"{theirs}.weight", dims, dims, when)


_TENSORS = (
    Tensor("embed.w", "model.embed_tokens.weight", "V D", "V D"),
    *_linear("q", _ATTENTION + "q_proj", "(H G K) D", "D H G K", fused=False),
    *_linear("k", _ATTENTION + "k_proj", "(H K) D", "D H K", fused=False),
    *_linear("v", _ATTENTION + "v_proj", "(H K) D", "D H K", fused=False),
    *_linear("qkv", _ATTENTION + "qkv_proj", "P D", "D P", fused=True),
    *_linear("o", _ATTENTION + "o_proj", "D (H G K)", "H G K D"),
    *_linear("gate", _MLP + "gate_proj", "F D", "D F", fused=False),
    *_linear("up", _MLP + "up_proj", "F D", "D F", fused=False),
    *_linear("gate_up", _MLP + "gate_up_proj", "U D", "D U", fused=True),
    *_linear("down", _MLP + "down_proj", "D F", "F D"),
    _norm("norm_q", _ATTENTION + "q_norm", lambda c: c.qk_norm, "K"),
    _norm("norm_k", _ATTENTION + "k_norm", lambda c: c.qk_norm, "K"),
    _norm("norm_attention", _LAYER + "input_layernorm"),
    Tensor("norm.gain", "model.norm.weight", "D", "D"),
    Tensor("head", "lm_head.weight", "V D", "V D", lambda c: not c.tied_head),
)
_NORMS = (_norm("norm_mlp", _LAYER + "post_attention_layernorm"),)
_SANDWICH = (
    _norm("norm_attended", _LAYER + "post_attention_layernorm"),
    _norm("norm_mlp", _LAYER + "pre_feedforward_layernorm"),
    _norm("norm_out", _LAYER + "post_feedforward_layernorm"),
)


def _experts(router: str, expert: str, gate: str, up: str, down: str) -> tuple[Tensor, ...]:
    return (
        Tensor("blocks.experts.router", f"{router}.weight", "E D", "D E"),
        Tensor("blocks.experts.gate", f"{expert}.{{expert}}.{gate}.weight", "F D", "E D F"),
        Tensor("blocks.experts.up", f"{expert}.{{expert}}.{up}.weight", "F D", "E D F"),
        Tensor("blocks.experts.down", f"{expert}.{{expert}}.{down}.weight", "D F", "E F D"),
    )


_MIXTRAL = _LAYER + "block_sparse_moe."
LLAMA = Family("llama", _read_llama, _TENSORS + _NORMS)
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": Family("mistral", _read_mistral, _TENSORS + _NORMS),
    "Qwen2ForCausalLM": Family("qwen2", partial(_read_qwen, third=False), _TENSORS + _NORMS),
    "Qwen3ForCausalLM": Family("qwen3", partial(_read_qwen, third=True), _TENSORS + _NORMS),
    "GemmaForCausalLM": Family("gemma", partial(_read_gemma, generation=1), _TENSORS + _NORMS),
    "Gemma2ForCausalLM": Family("gemma2", partial(_read_gemma, generation=2), _TENSORS + _SANDWICH),
    "Gemma3ForCausalLM": Family("gemma3", partial(_read_gemma, generation=3), _TENSORS + _SANDWICH),
    "Phi3ForCausalLM": Family("phi3", _read_phi3, _TENSORS + _NORMS),
    "MixtralForCausalLM": Family(
        "mixtral",
        partial(_read_mixture, qwen=False),
        (*_TENSORS, *_NORMS, *_experts(_MIXTRAL + "gate", _MIXTRAL + "experts", "w1", "w3", "w2")),
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3_moe",
        partial(_read_mixture, qwen=True),
        (*_TENSORS, *_NORMS, *_experts(_MLP + "gate", _MLP + "experts", "gate_proj", "up_proj", "down_proj")),
    ),
}
