"""What known models weigh: parameters, and memory of weights and adapter while LoRA trains. Nothing is loaded.

    python benchmarks/sizes.py

The entries of each config.json are the published ones; parameters counted here are compared with the published count.
Memory is of frozen weights in bfloat16 and of an adapter of rank 16 on all linear layers with its gradient and AdamW's
two moments, all float32. Activations come on top: `fiat train --dry_run` says how much they are.
"""

import json
import sys

import jax
from flax import nnx

from fiat_jax.models.config import Build
from fiat_jax.models.families import family_of
from fiat_jax.models.linear import Weight
from fiat_jax.models.lora import LoraConfig, resolve
from fiat_jax.models.model import abstract_state
from fiat_jax.sharding import MeshConfig

TOLERANCE = 0.01


def llama(vocab, width, mlp, layers, heads, kv_heads, **more):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values = (vocab, width, mlp, layers, heads)
    return dict(zip(names, values, strict=True)) | {"num_key_value_heads": kv_heads} | more


def t5(vocab, width, mlp, layers, heads, **more):
    sizes = {"vocab_size": vocab, "d_model": width, "d_kv": 64, "d_ff": mlp, "num_layers": layers, "num_heads": heads}
    common = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "is_encoder_decoder": True}
    return sizes | common | more


TIED = {"tie_word_embeddings": True}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
# hub id → architecture, entries of config.json, published parameters in billions
MODELS = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("LlamaForCausalLM", llama(32000, 2048, 5632, 22, 32, 4), 1.10),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("LlamaForCausalLM", llama(49152, 576, 1536, 30, 9, 3, **TIED), 0.135),
    "meta-llama/Llama-2-7b-chat-hf": ("LlamaForCausalLM", llama(32000, 4096, 11008, 32, 32, 32), 6.74),
    "meta-llama/Llama-3.2-1B-Instruct": (
        "LlamaForCausalLM",
        llama(128256, 2048, 8192, 16, 32, 8, head_dim=64, **TIED),
        1.24,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        "LlamaForCausalLM",
        llama(128256, 3072, 8192, 28, 24, 8, head_dim=128, **TIED),
        3.21,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": ("LlamaForCausalLM", llama(128256, 4096, 14336, 32, 32, 8), 8.03),
    "meta-llama/Llama-3.3-70B-Instruct": ("LlamaForCausalLM", llama(128256, 8192, 28672, 80, 64, 8), 70.6),
    "mistralai/Mistral-7B-Instruct-v0.1": ("MistralForCausalLM", llama(32000, 4096, 14336, 32, 32, 8), 7.24),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen2ForCausalLM", llama(151936, 896, 4864, 24, 14, 2, **TIED), 0.494),
    "Qwen/Qwen2.5-7B-Instruct": ("Qwen2ForCausalLM", llama(152064, 3584, 18944, 28, 28, 4), 7.62),
    "Qwen/Qwen2.5-72B-Instruct": ("Qwen2ForCausalLM", llama(152064, 8192, 29568, 80, 64, 8), 72.7),
    "Qwen/Qwen3-0.6B": ("Qwen3ForCausalLM", llama(151936, 1024, 3072, 28, 16, 8, head_dim=128, **TIED), 0.596),
    "Qwen/Qwen3-8B": ("Qwen3ForCausalLM", llama(151936, 4096, 12288, 36, 32, 8, head_dim=128), 8.19),
    "Qwen/Qwen3-32B": ("Qwen3ForCausalLM", llama(151936, 5120, 25600, 64, 64, 8, head_dim=128), 32.8),
    "google/gemma-2b-it": ("GemmaForCausalLM", llama(256000, 2048, 16384, 18, 8, 1, head_dim=256), 2.51),
    "google/gemma-2-2b-it": ("Gemma2ForCausalLM", llama(256000, 2304, 9216, 26, 8, 4, head_dim=256), 2.61),
    "google/gemma-2-9b-it": ("Gemma2ForCausalLM", llama(256000, 3584, 14336, 42, 16, 8, head_dim=256), 9.24),
    "google/gemma-2-27b-it": ("Gemma2ForCausalLM", llama(256000, 4608, 36864, 46, 32, 16, head_dim=128), 27.2),
    "google/gemma-3-1b-it": ("Gemma3ForCausalLM", llama(262144, 1152, 6912, 26, 4, 1, head_dim=256), 1.00),
    "microsoft/Phi-3-mini-4k-instruct": ("Phi3ForCausalLM", llama(32064, 3072, 8192, 32, 32, 32), 3.82),
    "microsoft/Phi-4-mini-instruct": (
        "Phi3ForCausalLM",
        llama(200064, 3072, 8192, 32, 24, 8, partial_rotary_factor=0.75, rope_scaling=LONG, **TIED),
        3.84,
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (
        "MixtralForCausalLM",
        llama(32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
        46.7,
    ),
    "Qwen/Qwen3-30B-A3B": (
        "Qwen3MoeForCausalLM",
        llama(151936, 2048, 6144, 48, 32, 4, head_dim=128, moe_intermediate_size=768, num_experts=128)
        | {"num_experts_per_tok": 8},
        30.5,
    ),
    "google/flan-t5-small": ("T5ForConditionalGeneration", t5(32128, 512, 1024, 8, 6), 0.077),
    "google/flan-t5-base": ("T5ForConditionalGeneration", t5(32128, 768, 2048, 12, 12), 0.248),
    "google/flan-t5-large": ("T5ForConditionalGeneration", t5(32128, 1024, 2816, 24, 16), 0.783),
    "google/flan-t5-xl": ("T5ForConditionalGeneration", t5(32128, 2048, 5120, 24, 32), 2.85),
    "google/flan-t5-xxl": ("T5ForConditionalGeneration", t5(32128, 4096, 10240, 24, 64), 11.1),
    "bigscience/mt0-base": ("MT5ForConditionalGeneration", t5(250112, 768, 2048, 12, 12), 0.582),
    "bigscience/mt0-xl": ("MT5ForConditionalGeneration", t5(250112, 2048, 5120, 24, 32), 3.74),
    "bigscience/mt0-xxl": ("MT5ForConditionalGeneration", t5(250112, 4096, 10240, 24, 64), 12.9),
}


def weigh(architecture: str, entries: dict) -> tuple[int, int]:
    """Return the parameters of a model, and those of an adapter of rank 16 on all its linear layers."""
    hf_config = entries | {"architectures": [architecture]}
    family = family_of(hf_config, architecture)
    config = family.read_config(hf_config, architecture)
    build = Build(resolve(LoraConfig(rank=16), family.modules(config)), "bfloat16")
    _, state = abstract_state(config, build, MeshConfig(1, 1, 1).build(jax.devices()[:1]))
    count = lambda kind: sum(x.size for x in jax.tree.leaves(nnx.filter_state(state, kind)))  # noqa: E731
    return count(Weight), count(nnx.LoRAParam)


def main() -> int:
    """Print the table of docs/models.md, and one JSON line; fail where a count is not the published one."""
    print("| hub id | architecture | parameters | weights in bf16 | LoRA r = 16 | both while training |")
    print("|---|---|---:|---:|---:|---:|")
    ratios = {}
    for name, (architecture, entries, published) in MODELS.items():
        weights, adapter = weigh(architecture, entries)
        ratios[name] = weights / (published * 1e9)
        memory = 2 * weights + 16 * adapter
        sizes = f"{weights / 1e9:.3g} B | {2 * weights / 2**30:,.1f} GiB | {adapter / 1e6:.3g} M"
        print(f"| `{name}` | `{architecture}` | {sizes} | {memory / 2**30:,.1f} GiB |")
    print(json.dumps({"ratios": ratios, "goals": {"largest deviation from the published count": TOLERANCE}}))
    return int(any(abs(ratio - 1) > TOLERANCE for ratio in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
