"""How fast a checkpoint comes onto a mesh of 8 devices, beside reading its bytes; and how much host memory it takes.

    .venv/bin/python benchmarks/load.py                     1 GB of random weights, 8 CPU devices
    .venv/bin/python benchmarks/load.py --model DIR         a checkpoint of yours

Both sides in turn, in processes of their own, the file in the page cache: what is measured is work, not the disk.
Memory is the largest growth of the process (but for pages of the file, which the kernel may drop) beyond the arrays
themselves, in units of the largest tensor of the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

GOALS = {"time": 1.5, "memory": 1.2}
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 15,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
MESHES = {"fsdp": {"data": 1, "fsdp": 8, "tensor": 1}, "fsdp and tensor": {"data": 1, "fsdp": 4, "tensor": 2}}


def write(directory: Path) -> None:
    """Write a checkpoint of random weights."""
    import jax

    from fiat_jax.models.checkpoints import write_model
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.model import random_model, their_tensors
    from fiat_jax.sharding import MeshConfig

    mesh = MeshConfig(1, 1, 1).build(jax.devices()[:1])
    model = random_model(LLAMA.read_config(SHAPE, "SHAPE"), mesh)
    write_model(directory, their_tensors(model, model.weights()), SHAPE, directory)


def read(directory: Path) -> dict:
    """Read every byte of the files into memory."""
    begun = time.perf_counter()
    held = [path.read_bytes() for path in sorted(directory.glob("*.safetensors"))]
    return {"seconds": time.perf_counter() - begun, "gib": sum(map(len, held)) / 2**30}


def load(directory: Path, mesh: str) -> dict:
    """Load the checkpoint onto a mesh."""
    import jax

    from fiat_jax.models.checkpoints import WeightFiles
    from fiat_jax.models.model import ModelConfig, load_model
    from fiat_jax.sharding import MeshConfig

    built = MeshConfig(**MESHES[mesh]).build()
    largest = max(4 * size for size in map(_product, WeightFiles(directory).shapes.values()))
    before, begun = private_bytes(), time.perf_counter()
    with Peak() as peak:
        model = load_model(ModelConfig(str(directory)), built)
        jax.block_until_ready(model.trainable)
        seconds = time.perf_counter() - begun
    held = sum(shard.data.nbytes for x in jax.tree.leaves(model.trainable) for shard in x.addressable_shards)
    beyond = (peak.bytes - before - held) / largest
    return {"seconds": seconds, "beyond_arrays": beyond, "largest": largest, "held": held}


def _product(shape) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class Peak:
    """The most private memory of this process while in context, sampled every two milliseconds."""

    def __enter__(self) -> "Peak":
        self.bytes, self._done = private_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()


def private_bytes() -> int:
    """Return how much memory this process has of its own."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


def run(*arguments: str) -> dict:
    """Run one side in a process of its own; its last line is JSON."""
    # huge pages, as the `fiat` command starts itself
    environment = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--repeats", type=int, default=3, help="times that both sides run in turn; the best counts")
    parser.add_argument("--side", choices=("write", "read", *MESHES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        sides = {"write": write, "read": read}
        result = sides[args.side](args.model) if args.side in sides else load(args.model, args.side)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.model or Path(scratch)
        if args.model is None:
            run("--side", "write", "--model", str(directory))
        best: dict[str, dict] = {}
        for _ in range(args.repeats):
            for side in ("read", *MESHES):
                figures = run("--side", side, "--model", str(directory))
                print(json.dumps({side: figures}), flush=True)
                if side not in best or figures["seconds"] < best[side]["seconds"]:
                    best[side] = figures
    ratios = {f"time, {mesh}": best[mesh]["seconds"] / best["read"]["seconds"] for mesh in MESHES}
    ratios |= {f"memory, {mesh}": best[mesh]["beyond_arrays"] for mesh in MESHES}
    goals = {name: GOALS[name.split(",")[0]] for name in ratios}
    print(json.dumps({"ratios": ratios, "goals": goals, "measured": best}))


if __name__ == "__main__":
    main()
