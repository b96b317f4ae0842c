"""Compile an engine's programs for a TPU slice without a TPU (pip install libtpu): memory, and that caches stay put.

    python benchmarks/tpu_programs.py --shape 8b --topology v5e:4x4 --mesh 1,2,8
    python benchmarks/tpu_programs.py --shape 70b --topology v6e:4x4 --mesh 1,2,8

The shapes are Llama 3's, bfloat16. A program that updates its slots in place never copies their keys or values:
`cache_copies` counts the copy instructions that move a whole cache, one device's share of it.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
COMMON = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
HEAD_DIM = 128


def copies(text: str, cache: Sequence[int]) -> list[str]:
    """Return the copy instructions of a compiled program that move a whole cache, in whatever layout."""
    found = re.findall(r"= (\w+\[([\d,]+)\]\S*) copy\(", text)
    whole = sorted(size for size in cache if size > 1)
    return [shape for shape, dims in found if sorted(int(n) for n in dims.split(",") if n != "1") == whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--mesh", default="1,2,8", help="sizes of the axes data, fsdp and tensor")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--slot-length", type=int, default=768)
    parser.add_argument("--prefix", type=int, default=2048)
    args = parser.parse_args()

    import jax
    from jax.experimental import topologies

    from fiat_jax.inference.config import EngineConfig
    from fiat_jax.inference.memory import kept_bytes
    from fiat_jax.inference.programs import compile_programs
    from fiat_jax.models.decoder_families import LLAMA
    from fiat_jax.models.model import abstract_model
    from fiat_jax.sharding import MeshConfig

    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = MeshConfig(*map(int, args.mesh.split(","))).build(devices)
    config = LLAMA.read_config({**COMMON, **SHAPES[args.shape], "head_dim": HEAD_DIM}, args.shape)
    model = abstract_model(config, mesh, tuned=False, dtype="bfloat16")
    shapes = EngineConfig(
        slots=args.slots,
        slot_length=args.slot_length,
        prefix_length=args.prefix,
        shortest_bucket=args.slot_length // 2,
    )
    begun = time.perf_counter()
    programs = compile_programs(model, end_id=-1, c=shapes)
    seconds = time.perf_counter() - begun
    weights = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(model.frozen))
    info, places = programs.empty.out_info.kept.v_LBHSK, programs.empty.output_shardings.kept.v_LBHSK
    cache = places.shard_shape(info.shape)
    keys = kept_bytes(model, args.slots, args.slot_length, 0) // 2
    found = {}
    assert programs.prefix is not None
    compiled = {"decode": programs.decode, "read_prefix": programs.prefix.read}
    compiled |= {f"admit_{length}": program for length, program in programs.admit.items()}
    for name, program in compiled.items():
        memory = program.memory_analysis()
        try:
            text = program.as_text()
        except jax.errors.JaxRuntimeError:  # on v6e: XLA's parser does not know all that its TPU compiler writes
            text = None
        found[name] = {
            "arguments_gib": memory.argument_size_in_bytes / 2**30,
            "temporaries_gib": memory.temp_size_in_bytes / 2**30,
            "aliased_gib": memory.alias_size_in_bytes / 2**30,
            "cache_copies": None if text is None else copies(text, cache),
        }
        print(json.dumps({name: found[name]}), file=sys.stderr)
    about = {"shape": args.shape, "topology": args.topology, "mesh": args.mesh, "compile_seconds": seconds}
    about |= {"weights_gib": weights / 2**30, "keys_gib": keys / 2**30}
    ratios = {f"cache copies in {n}": len(p["cache_copies"]) for n, p in found.items() if p["cache_copies"] is not None}
    goals = dict.fromkeys(ratios, 0)
    print(json.dumps({"ratios": ratios, "goals": goals, "about": about, "programs": found}))


if __name__ == "__main__":
    main()
