"""What the care for machines that fail costs, and what several processes of one machine reach.

    .venv/bin/python benchmarks/hosts.py                      all four questions, some ten minutes
    .venv/bin/python benchmarks/hosts.py --only input         one of them

checkpoint   how long a save blocks the loop, by the account that every run keeps (`goodput`), and how much longer
             the step is beside which it is written; both as a share of the median step
restore      1 GB of weights restored onto another mesh of 8 devices, from a Hugging Face directory and from a
             checkpoint of a run that tunes all weights: the most private memory beyond the arrays, as a share of them
input        at 100,000 packed rows: what the host does for a batch, as a share of a step; packing an epoch, as a
             share of its steps
processes    tokens a second of two processes with a core each, over those of one process with both, in turn

The step is that of SmolLM2-135M's shape, float32, LoRA of rank 16 on all linear layers, 4 rows of 256 tokens, on the
CPU. Every part runs in processes of its own.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import load
import train_step

ROWS, LENGTH = 4, 256
GOALS = {"checkpoint": 0.05, "restore": 1.0, "input": 0.02, "processes": 0.9}
PARTS = tuple(GOALS)


def random_examples(count: int, shortest: int, longest: int):
    """Return examples of random ids whose lengths, targets included, are drawn evenly."""
    import numpy as np

    from fiat_jax.data.examples import Example, Examples

    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, count)
    ids = rng.integers(3, 250, longest).astype(np.int32)
    return Examples.of(Example(str(n), "und", ids[: m - 2], ids[m - 2 : m]) for n, m in enumerate(lengths))


def shaped(mesh):
    """Return a model of the shape, and the settings of its run."""
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.lora import LoraConfig
    from fiat_jax.models.model import random_model
    from fiat_jax.training.config import TrainConfig
    from fiat_jax.training.optimizer import OptimizerConfig

    shape = LLAMA.read_config(train_step.SHAPE, "SHAPE")
    model = random_model(shape, mesh, lora=LoraConfig(rank=16, alpha=32.0))
    optimizer = OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup=0.0)
    return model, TrainConfig(epochs=1, batch_rows=ROWS, row_length=LENGTH, optimizer=optimizer)


def checkpoint(scratch: Path, steps: int) -> dict:
    """Train so many steps, with a save before every fourth; return seconds of steps and of saves."""
    import dataclasses

    import jax

    from fiat_jax.data.batches import TrainBatches
    from fiat_jax.experiments import runtime
    from fiat_jax.sharding import MeshConfig
    from fiat_jax.training import log, loop

    runtime.start()
    log.FLUSH_EVERY = 1  # each step is waited for, so that the log has its own time
    spent: list[tuple[str, float]] = []

    class Account(loop.Goodput):
        def _add(self, cause: str, seconds: float) -> None:
            spent.append((cause, seconds))
            super()._add(cause, seconds)

    loop.Goodput = Account
    every = 4
    mesh = MeshConfig().build()
    with jax.set_mesh(mesh):
        model, config = shaped(mesh)
        batches = TrainBatches(random_examples(ROWS * steps, LENGTH + 1, LENGTH + 1), LENGTH, ROWS, seed=0)
        config = dataclasses.replace(config, checkpoint_every=every)
        loop.train(model, batches, config, scratch, evaluate=lambda _: {"none": 0.0}, select="none")
        saved = sum(x.nbytes for x in jax.tree.leaves(model.trainable)) * 3  # and the two moments
    lines = [json.loads(line) for line in (scratch / "train_log.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "loss" in line}
    beside = {step: value for step, value in seconds.items() if step >= 2 * every}  # the first ones compile
    saves = [value for cause, value in spent if cause == "checkpoint" and value > 0]
    return {
        "step": statistics.median(value for step, value in beside.items() if step % every),
        "step beside a save": statistics.median(value for step, value in beside.items() if step % every == 0),
        "blocked": statistics.median(saves[2:-2]),  # not those of the first steps, and of both evaluations
        "blocks": saves,
        "saved MB": saved / 1e6,
    }


def save_all(directory: Path) -> dict:
    """Save the weights of load.py's model from a mesh of 8, as a run does that tunes all of them."""
    import jax

    from fiat_jax.checkpoint import Checkpoints
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.model import random_model
    from fiat_jax.sharding import MeshConfig

    model = random_model(LLAMA.read_config(load.SHAPE, "SHAPE"), MeshConfig(**load.MESHES["fsdp"]).build())
    checkpoints = Checkpoints(directory / "saved")
    checkpoints.save(1, model.trainable, {})
    checkpoints.close()
    return {"GB": sum(x.nbytes for x in jax.tree.leaves(model.trainable)) / 1e9}


def restore_all(directory: Path) -> dict:
    """Restore them onto another mesh."""
    import jax

    from fiat_jax.checkpoint import Checkpoints
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.model import abstract_model
    from fiat_jax.sharding import MeshConfig

    mesh = MeshConfig(**load.MESHES["fsdp and tensor"]).build()
    like = abstract_model(LLAMA.read_config(load.SHAPE, "SHAPE"), mesh).trainable
    checkpoints = Checkpoints(directory / "saved")
    jax.block_until_ready(jax.numpy.zeros(8))
    before, begun = load.private_bytes(), time.perf_counter()
    with load.Peak() as peak:
        restored = jax.block_until_ready(checkpoints.restore(1, like))
        seconds = time.perf_counter() - begun
    held = sum(shard.data.nbytes for x in jax.tree.leaves(restored) for shard in x.addressable_shards)
    return {"seconds": seconds, "beyond": (peak.bytes - before - held) / held}


def load_directory(directory: Path) -> dict:
    """The same of a base in a Hugging Face directory, which was written by one device."""
    found = load.load(directory, "fsdp and tensor")
    return {"seconds": found["seconds"], "beyond": found["beyond_arrays"] * found["largest"] / found["held"]}


def input_pipeline() -> dict:
    """Pack examples into some 100,000 rows, and cut batches from them; processor seconds."""
    from fiat_jax.data.batches import TrainBatches

    examples = random_examples(210_000, 32, 192)
    begun = time.process_time()
    batches = TrainBatches(examples, LENGTH, ROWS, seed=0)
    made = time.process_time()
    steps = batches.num_steps(1)
    packed = time.process_time()
    first = steps // 3
    each = []
    for step in range(first, first + 400):
        at = time.process_time()
        batches.batch(step)
        each.append(time.process_time() - at)
    return {
        "rows": steps * ROWS,
        "examples": len(examples),
        "set up": made - begun,
        "packing": packed - made,
        "batch": statistics.mean(each),
        "slowest batch": max(each),
        "steps": steps,
    }


def part_of_run(steps: int) -> dict:
    """Be one of the processes of a run, or the only one; return its tokens a second, all processes together."""
    import jax

    from fiat_jax.data.batches import TrainBatches
    from fiat_jax.experiments import runtime
    from fiat_jax.sharding import MeshConfig, divided
    from fiat_jax.training.program import jit_step
    from fiat_jax.training.step import TrainState

    runtime.start()
    mesh = MeshConfig().build()
    with jax.set_mesh(mesh):
        model, config = shaped(mesh)
        batches = TrainBatches(random_examples(ROWS * steps, LENGTH + 1, LENGTH + 1), LENGTH, ROWS, seed=0)
        optimizer = config.optimizer.build(steps)
        step = jit_step(model, config, optimizer)
        state = TrainState(jax.numpy.int32(0), model.trainable, optimizer.init(model.trainable))
        seconds = []
        for index in range(steps):
            begun = time.perf_counter()
            batch = divided(mesh, model.build.rules, batches.batch(index))
            state, metrics = step(state, model.frozen, batch)
            tokens = int(metrics["tokens"])
            seconds.append(time.perf_counter() - begun)
    return {"tokens a second": tokens / statistics.median(seconds[1:])}


def start(arguments: Sequence[object], cores: Sequence[int] = (), **env: str) -> subprocess.Popen:
    """Start one part in a process of its own, on some cores alone where they are given."""
    # huge pages, as the `fiat` command starts itself
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ, "JAX_PLATFORMS": "cpu", **env}
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    command = [*pinned, sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> dict:
    """Wait for a part; its last line is JSON."""
    out, told = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(process.args)} failed:\n{told[-3000:]}")
    return json.loads(out.strip().splitlines()[-1])


def one_and_two(steps: int, repeats: int) -> dict:
    """Return the tokens a second of one process with two cores, and of two with one each, in turn."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    found: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repeats):
        found["one"].append(result(start(["--side", "run", "--steps", steps], cores))["tokens a second"])
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            where = {"FIAT_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}", "FIAT_NUM_PROCESSES": "2"}
        pair = [
            start(["--side", "run", "--steps", steps], [core], FIAT_PROCESS_ID=str(index), **where)
            for index, core in enumerate(cores)
        ]
        found["two"].append(min(result(process)["tokens a second"] for process in pair))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one question; may be given again")
    parser.add_argument("--steps", type=int, default=24, help="of the runs that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="turns of one process and two")
    parser.add_argument("--step-seconds", type=float, help="of a step, where --only input is to take it as known")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides = {
        "checkpoint": lambda: checkpoint(args.scratch, args.steps),
        "write": lambda: load.write(args.scratch),
        "save": lambda: save_all(args.scratch),
        "load": lambda: load_directory(args.scratch),
        "restore": lambda: restore_all(args.scratch),
        "input": input_pipeline,
        "run": lambda: part_of_run(args.steps),
    }
    if args.side:
        print(json.dumps(sides[args.side]()))
        return
    asked, measured, ratios = args.only or PARTS, {}, {}
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    with tempfile.TemporaryDirectory() as scratch:
        here = ["--scratch", scratch, "--steps", args.steps]
        if "checkpoint" in asked or ("input" in asked and args.step_seconds is None):
            found = measured["checkpoint"] = result(start(["--side", "checkpoint", *here]))
            args.step_seconds = found["step"]
            ratios["checkpoint: blocked, of a step"] = found["blocked"] / found["step"]
            ratios["checkpoint: longer beside a save, of a step"] = found["step beside a save"] / found["step"] - 1
        if "restore" in asked:
            for wrote, read in (("write", "load"), ("save", "restore")):
                result(start(["--side", wrote, *here], **eight))
                measured[read] = result(start(["--side", read, *here], **eight))
            ratios["restore: beyond the arrays, Hugging Face directory"] = measured["load"]["beyond"]
            ratios["restore: beyond the arrays, checkpoint"] = measured["restore"]["beyond"]
        if "input" in asked:
            found = measured["input"] = result(start(["--side", "input"]))
            ratios["input: a batch, of a step"] = found["batch"] / args.step_seconds
            once = found["set up"] + found["packing"]
            ratios["input: packing, of an epoch's steps"] = once / (found["steps"] * args.step_seconds)
    if "processes" in asked:
        found = measured["processes"] = one_and_two(args.steps, args.repeats)
        ratios["processes: two of a core, one of two"] = statistics.median(found["two"]) / statistics.median(
            found["one"]
        )
    goals = {name: GOALS[name.partition(":")[0]] for name in ratios}
    print(json.dumps({"ratios": ratios, "goals": goals, "measured": measured}))


if __name__ == "__main__":
    main()
