"""How fast one LoRA step is, beside torch + transformers + peft: the same model shape, rows and optimizer, in turn.

    .venv/bin/python benchmarks/train_step.py --peer-python .venv/bin/python
    ... --rows DATA/esnli/train.jsonl --tokenizer DIR      adds rows of real lengths, packed here and padded there

The model has SmolLM2-135M's shape, float32, LoRA of rank 16 on all linear layers. "full": 4 rows of 256 tokens, all
of them learnt. "real": rendered rows, padded in batches of 16 there (the first 96), packed here (the first batches of
768), with loss on the answers alone, as FIAT trains ("real_all_tokens": on every token, as the peer computes it
whatever its labels).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
REAL_BATCH = 16
ROW_LENGTH, PACKED_ROWS, PACKED_FROM = 320, 6, 768  # batches are packed from as many examples, as in a real epoch
STEPS = 6  # the first one compiles and is not counted
FULL = [[256] * 4] * STEPS
GOALS = {"full": 1.4, "real": 2.2}
TARGET_TOKENS = 2


def real_lengths(rows_file: str, tokenizer: str, prompts: str, count: int) -> list[int]:
    """Return the token lengths of the first rendered rows of an e-SNLI file with its reasoning."""
    from fiat_jax.prompts.instructions import load_instructions
    from fiat_jax.prompts.render import Reasoning, Renderer
    from fiat_jax.prompts.tokenizer import Tokenizer

    renderer = Renderer(load_instructions(prompts), Tokenizer.from_directory(tokenizer), 512)
    lengths = []
    with open(rows_file, encoding="utf-8") as file:
        for line in list(file)[:count]:
            row = json.loads(line)
            rendered = renderer.answer(row, Reasoning(row["reasoning"], row["big_answer"]), row["answer"])
            lengths.append(len(rendered.inputs) + len(rendered.target))
    return lengths


def ours(case: str, lengths: list[int]) -> dict:
    """Run our side of one case in this process."""
    import jax
    import numpy as np

    from fiat_jax.data.batches import TrainBatches
    from fiat_jax.data.examples import Example, Examples
    from fiat_jax.experiments import runtime
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.lora import LoraConfig
    from fiat_jax.models.model import random_model
    from fiat_jax.sharding import MeshConfig
    from fiat_jax.training.optimizer import OptimizerConfig
    from fiat_jax.training.step import TrainState, train_step

    runtime.start()
    rng = np.random.default_rng(0)

    def example(index: int, length: int) -> Example:
        ids = rng.integers(3, 250, length).astype(np.int32)
        cut = length - TARGET_TOKENS if case == "real" else 1
        return Example(str(index), "en", ids[:cut], ids[cut:])

    if case == "full":
        rows, row_length = 4, 256
        lengths = [257] * 24  # the last token of a row is a target alone
    else:
        rows, row_length = PACKED_ROWS, ROW_LENGTH
    batches = TrainBatches(Examples.of(example(i, n) for i, n in enumerate(lengths)), row_length, rows, seed=0)
    mesh = MeshConfig().build()
    with jax.set_mesh(mesh):
        model = random_model(LLAMA.read_config(SHAPE, "SHAPE"), mesh, lora=LoraConfig(rank=16, alpha=32.0))
        optimizer = OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup=0.0).build(100)
        state = TrainState(jax.numpy.int32(0), model.trainable, optimizer.init(model.trainable))

        def one(state, frozen, batch):
            return train_step(state, frozen, batch, loss_fn=model.loss, optimizer=optimizer, parts=1, dropout_key=None)

        step = jax.jit(one, donate_argnums=0)
        seconds, tokens = [], []
        for index in range(STEPS):
            begun = time.perf_counter()
            batch = batches.batch(index)
            state, metrics = step(state, model.frozen, batch)
            float(metrics["loss"])
            seconds.append(time.perf_counter() - begun)
            tokens.append(int(np.count_nonzero(batch["segments"])))
    rates = [n / s for n, s in zip(tokens[1:], seconds[1:], strict=True)]
    return {
        "real_tokens_per_second": statistics.median(rates),
        "first_step_seconds": seconds[0],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "fill": sum(tokens) / (len(tokens) * rows * row_length),
    }


def run(command: list[str], environment: dict[str, str]) -> dict:
    """Run one side in a process of its own; its last line is JSON."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python with torch, transformers and peft")
    parser.add_argument("--rows", help="e-SNLI rows with reasoning, for real lengths")
    parser.add_argument("--tokenizer", help="directory of a tokenizer, for real lengths")
    parser.add_argument("--prompts", default="prompts/esnli.yaml")
    parser.add_argument("--repeats", type=int, default=2, help="times that both sides run in turn; the best counts")
    parser.add_argument("--huge-pages", action="store_true", help="let malloc of both sides use huge pages (glibc)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--lengths", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(ours(args.side, json.loads(args.lengths or "[]"))))
        return

    environment = dict(os.environ)
    if args.huge_pages:
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    lengths = []
    if args.rows and args.tokenizer:
        lengths = real_lengths(args.rows, args.tokenizer, args.prompts, PACKED_FROM)
    real = [lengths[i : i + REAL_BATCH] for i in range(0, len(lengths), REAL_BATCH)][:STEPS]
    cases = {"full": FULL, **({"real": real, "real_all_tokens": real} if real else {})}
    measured: dict[str, dict] = {}
    for case, peer_batches in cases.items():
        for _ in range(args.repeats):
            command = [sys.executable, __file__, "--side", case, "--lengths", json.dumps(lengths)]
            sides = {"ours": run(command, environment)}
            if args.peer_python:
                script = os.path.join(os.path.dirname(__file__), "peers", "peft_step.py")
                peer = [args.peer_python, script, "--config", json.dumps(SHAPE), "--batches", json.dumps(peer_batches)]
                sides["peft"] = run(peer, environment)
            print(json.dumps({case: sides}), flush=True)
            for side, figures in sides.items():
                best = measured.setdefault(case, {}).get(side)
                if best is None or figures["real_tokens_per_second"] > best["real_tokens_per_second"]:
                    measured[case][side] = figures
    ratios = {
        case: sides["ours"]["real_tokens_per_second"] / sides["peft"]["real_tokens_per_second"]
        for case, sides in measured.items()
        if "peft" in sides
    }
    print(json.dumps({"ratios": ratios, "goals": GOALS, "measured": measured}))


if __name__ == "__main__":
    main()
