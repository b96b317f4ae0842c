"""What the options of the decoder cost: a mixture of experts beside a dense layer, and compiling a deep model.

    .venv/bin/python benchmarks/families.py

"experts": the forward pass of one mixture (8 experts, 2 a token) beside a gated MLP of equal active FLOPs, in turn.
"depth": seconds to compile a training step of a family's pattern of layers repeated 5 times, beside once; and 10 times,
beside twice: of one layer XLA makes no loop.
"""

import argparse
import dataclasses
import json
import statistics
import time

FAMILIES = ("llama", "gemma 3")
GOALS = {"experts": 1.3} | {f"depth, {family}, {pair}": 1.3 for family in FAMILIES for pair in ("5 : 1", "10 : 2")}
TOKENS, WIDTH, MLP_WIDTH, EXPERTS, CHOSEN = 2048, 1024, 1792, 8, 2


def experts(rounds: int) -> dict:
    """Time both layers in turn; return medians in milliseconds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fiat_jax.models.experts import mix

    rng = np.random.default_rng(0)

    def weight(*shape):
        return jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32)

    x_ND = weight(TOKENS, WIDTH)
    weights_NJ, experts_NJ = jax.lax.top_k(jax.nn.softmax(weight(TOKENS, EXPERTS) * 50), CHOSEN)
    wide, narrow = (EXPERTS, WIDTH, MLP_WIDTH), (EXPERTS, MLP_WIDTH, WIDTH)
    gate, up, down = weight(*wide), weight(*wide), weight(*narrow)
    dense_gate, dense_up = weight(WIDTH, CHOSEN * MLP_WIDTH), weight(WIDTH, CHOSEN * MLP_WIDTH)
    dense_down = weight(CHOSEN * MLP_WIDTH, WIDTH)

    mixture = jax.jit(lambda x, *ws: mix(x, weights_NJ, experts_NJ, *ws, activation=jax.nn.silu))
    dense = jax.jit(lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down)
    sides = {"experts": lambda: mixture(x_ND, gate, up, down)}
    sides["dense"] = lambda: dense(x_ND, dense_gate, dense_up, dense_down)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            begun = time.perf_counter()
            jax.block_until_ready(side())
            if round_:  # the first compiles
                seconds[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def depth(family: str) -> dict:
    """Return seconds to compile the gradient of a pattern of layers, by how often it is repeated."""
    import jax
    import jax.numpy as jnp

    from fiat_jax.models.config import DecoderConfig, Reach
    from fiat_jax.models.lora import LoraConfig
    from fiat_jax.models.model import random_model
    from fiat_jax.models.rope import Rope
    from fiat_jax.sharding import MeshConfig

    config = DecoderConfig(
        vocab_size=1000,
        width=64,
        num_layers=1,
        num_kv_heads=2,
        queries_per_kv_head=2,
        head_dim=16,
        mlp_width=128,
        max_length=512,
    )
    pattern = [0]
    if family == "gemma 3":
        pattern = [0] * 5 + [1]
        reaches = (Reach(64, Rope(theta=1e4)), Reach(None, Rope(theta=1e6)))
        config = dataclasses.replace(config, reaches=reaches, qk_norm=True, sandwich=True, activation="gelu_tanh")
    mesh = MeshConfig(1, 1, 1).build(jax.devices()[:1])
    ints = ("tokens", "positions", "segments", "branches", "target_positions", "targets")
    batch = {name: jax.ShapeDtypeStruct((2, 128), jnp.int32) for name in ints}
    batch["weights"] = jax.ShapeDtypeStruct((2, 128), jnp.float32)
    seconds = {}
    for repeats in (1, 2, 5, 10):
        layers = pattern * repeats
        built = dataclasses.replace(
            config, num_layers=len(layers), layer_reaches=tuple(layers) if family == "gemma 3" else ()
        )
        model = random_model(built, mesh, lora=LoraConfig(rank=4))
        times = []
        for _ in range(3):
            jax.clear_caches()
            lowered = jax.jit(jax.value_and_grad(model.loss)).lower(model.trainable, model.frozen, batch)
            begun = time.perf_counter()
            lowered.compile()
            times.append(time.perf_counter() - begun)
        seconds[str(repeats)] = min(times)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    layer = experts(args.rounds)
    print(json.dumps({"experts": layer}), flush=True)
    ratios, measured = {"experts": layer["experts"] / layer["dense"]}, {"experts": layer}
    for family in FAMILIES:
        seconds = depth(family)
        print(json.dumps({family: seconds}), flush=True)
        measured[f"depth, {family}"] = seconds
        for many, few in (("5", "1"), ("10", "2")):
            ratios[f"depth, {family}, {many} : {few}"] = seconds[many] / seconds[few]
    print(json.dumps({"ratios": ratios, "goals": GOALS, "measured": measured}))


if __name__ == "__main__":
    main()
