"""Weak scaling of the train step by what its compiled program does: operations, bytes and exchanges of each device.

    python benchmarks/scaling.py

The same rows a device on 1 to 256 fake CPU devices, LoRA on a decoder of 4 layers, three layouts: `data` (a whole model
on each device), `fsdp` (weights divided among all), `tensor` (8 ways, `data` the rest). Work a device is to stay what
it is, and what leaves it to grow as theory says:

    data     2 (n - 1) / n x bytes of gradients                              (an all-reduce, ring)
    fsdp     (n - 1) / n x what is gathered and summed, which does not depend on n
    tensor   what data says of its n / 8 groups, and the sums over 8, which do not depend on n

Nothing runs. Counted by `fiat_jax.planning`, loops by their trips; the programs are those of XLA's CPU compiler.
"""

import argparse
import json
import os
import sys

MOST = 256
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={MOST}"
os.environ["JAX_PLATFORMS"] = "cpu"
COUNTS = (1, 4, 16, 64, 256)
TENSOR = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2, help="of a device")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    args = parser.parse_args()

    import jax

    from fiat_jax.data.batches import TrainBatches
    from fiat_jax.models.config import DecoderConfig
    from fiat_jax.models.lora import LoraConfig
    from fiat_jax.models.model import abstract_model
    from fiat_jax.planning.account import account
    from fiat_jax.planning.hlo import parse
    from fiat_jax.planning.plan import typical
    from fiat_jax.planning.target import shape_of
    from fiat_jax.sharding import MeshConfig
    from fiat_jax.training.config import TrainConfig
    from fiat_jax.training.program import abstract_batch, abstract_state, jit_step

    config = DecoderConfig(
        vocab_size=4096,
        width=512,
        num_layers=4,
        num_kv_heads=8,
        queries_per_kv_head=1,
        head_dim=64,
        mlp_width=1536,
        max_length=4096,
    )
    layouts = {
        "data": lambda n: MeshConfig(n, 1, 1),
        "fsdp": lambda n: MeshConfig(1, n, 1),
        "tensor": lambda n: MeshConfig(n // TENSOR, 1, TENSOR),
    }

    def measured(mesh_config: MeshConfig, count: int) -> dict:
        mesh = mesh_config.build(jax.devices()[:count])
        rows = args.rows * mesh.shape["data"] * mesh.shape["fsdp"]
        train = TrainConfig(batch_rows=rows, row_length=args.length)
        model, optimizer = abstract_model(config, mesh, lora=LoraConfig(rank=16)), train.optimizer.build(100)
        batches = TrainBatches(typical(rows, args.length - 32, 32), args.length, rows, 0)
        with jax.set_mesh(mesh):
            state, batch = abstract_state(model, optimizer), abstract_batch(model, batches.batch(0))
            compiled = jit_step(model, train, optimizer).lower(state, model.frozen, batch).compile()
        counted = account(parse(compiled.as_text()), shape_of(mesh), {})
        sent: dict[str, float] = {}
        for one in counted.collectives:
            sent["/".join(one.axes)] = sent.get("/".join(one.axes), 0.0) + one.bytes
        size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
        return {
            "flops": counted.flops,
            "bytes": counted.bytes,
            "sent": sent,
            "counted once": list(counted.unknown),
            "tuned": size(model.trainable),
            "frozen": size(model.frozen),
        }

    found, ratios = {}, {}
    for layout, mesh_of in layouts.items():
        counts = [n for n in COUNTS if layout != "tensor" or n > TENSOR]
        for n in counts:
            one = found[f"{layout} {n}"] = measured(mesh_of(n), n)
            total = sum(one["sent"].values())
            print(
                f"{layout:7} {n:4} devices: {one['flops'] / 1e9:.3f} GFLOP, {one['bytes'] / 1e9:.3f} GB, "
                f"{total / 1e6:.3f} MB sent ({ {k: round(v / 1e6, 3) for k, v in one['sent'].items()} })",
                file=sys.stderr,
            )
        first, last = found[f"{layout} {counts[1]}"], found[f"{layout} {counts[-1]}"]
        ratios[f"{layout}: operations a device, {counts[-1]} over {counts[1]}"] = last["flops"] / first["flops"]
        ratios[f"{layout}: bytes a device, {counts[-1]} over {counts[1]}"] = last["bytes"] / first["bytes"]
        ratios[f"{layout}: sent, over theory"] = _over_theory(layout, counts, found)
    goals = dict.fromkeys(ratios, 1.0)
    print(json.dumps({"ratios": ratios, "goals": goals, "found": found}))


def _over_theory(layout: str, counts: list[int], found: dict) -> float:
    """Return what leaves a device at the largest count over what theory makes of the second one."""
    second, last = counts[1], counts[-1]
    sent = {n: sum(found[f"{layout} {n}"]["sent"].values()) for n in (second, last)}
    ring = lambda n: (n - 1) / n  # noqa: E731
    if layout != "tensor":
        return sent[last] / (sent[second] * ring(last) / ring(second))
    across = {n: sum(v for axes, v in found[f"{layout} {n}"]["sent"].items() if "data" in axes) for n in sent}
    within = sent[second] - across[second]
    return sent[last] / (within + across[second] * ring(last // TENSOR) / ring(second // TENSOR))


if __name__ == "__main__":
    main()
