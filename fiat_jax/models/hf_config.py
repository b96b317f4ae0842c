"""The entries of a config.json, in old and new spellings, and what they say of positions."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.config import Reach
from fiat_jax.models.rope import KINDS, Rope

ACTIVATION_NAMES = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


class Entries:
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
