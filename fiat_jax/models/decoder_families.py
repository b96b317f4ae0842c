"""The decoders that we read: config.json to settings of the one decoder, and their tables of tensors."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fiat_jax.models.config import DecoderConfig, Reach
from fiat_jax.models.hf_config import GLOBAL, LOCAL, Entries
from fiat_jax.models.rope import Rope
from fiat_jax.models.tensors import Family, Tensor


def _read_llama(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    read = Entries(hf, where)
    attention = {"q", "k", "v", "o"} if read.get("attention_bias", False) else set()
    mlp = {"gate", "up", "down"} if read.get("mlp_bias", False) else set()
    rope = read.rope()
    return DecoderConfig(
        **read.sizes(), activation=read.activation(), biased=frozenset(attention | mlp), reaches=(Reach(None, rope),)
    )


def _read_mistral(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    read = Entries(hf, where)
    window = hf.get("sliding_window", 4096)  # absent and null differ: null is none
    return DecoderConfig(**read.sizes(), activation=read.activation(), reaches=(Reach(window, read.rope()),))


def _read_qwen(hf: Mapping[str, Any], where: str, *, third: bool) -> DecoderConfig:
    """Read Qwen 2, 2.5 and 3."""
    read = Entries(hf, where)
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
    read = Entries(hf, where)
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


def _gemma3_ropes(read: Entries) -> dict[str, Rope]:
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
    read = Entries({"original_max_position_embeddings": 4096, **hf}, where, eps=1e-5)
    rope = read.rope(renamed={"su": "longrope", "yarn": "longrope"}, in_part=True)
    reaches = (Reach(hf.get("sliding_window"), rope),)
    return DecoderConfig(**read.sizes(), activation=read.activation(), reaches=reaches, fused=True)


def _read_mixture(hf: Mapping[str, Any], where: str, *, qwen: bool) -> DecoderConfig:
    """Read Mixtral and Qwen3-MoE."""
    read = Entries(hf, where) if qwen else Entries(hf, where, eps=1e-5, theta=1e6)
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
DECODERS: dict[str, Family] = {
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
