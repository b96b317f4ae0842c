"""A run of each kind of model over any layout, in this process or as one of several: `python -m support.layout_run`."""

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from support.drawn import drawn
from support.kinds import KINDS
from support.louder import louder
from support.tiny_run import LORA, STEADY, likelihood, tiny_batches

from fiat_jax.distributed import initialize
from fiat_jax.errors import Interrupted
from fiat_jax.models.families import FAMILIES
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.loop import train

LONG = dataclasses.replace(STEADY, epochs=10, evaluate_every=25, checkpoint_every=5)


def drawn_mesh(kind: str, random: np.random.Generator, devices: int = 8) -> MeshConfig:
    """Return a random layout that the tiny model and its batches of 8 rows fit."""
    while True:
        tensor = int(random.choice([1, 2, 4]))
        expert = int(random.choice([1, 2, 4])) if kind == "experts" else 1
        fsdp = int(random.choice([1, 2, 4, 8]))
        if devices % (tensor * expert * fsdp) == 0:
            return MeshConfig(devices // (tensor * expert * fsdp), fsdp, tensor, expert=expert)


def layout_run(kind: str, mesh: MeshConfig, workdir: Path, stop: int = -1, tuned: str = "LoRA") -> bool:
    """Train until a step in which it is told to stop, or to the end; return whether it came to the end."""
    described = KINDS[kind]
    built = mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.expert * mesh.tensor])
    lora = LORA if tuned == "LoRA" else None
    at_step = lambda step: step == stop and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with jax.set_mesh(built):
        changed = lambda model: louder(model, described.loud)  # noqa: E731
        model = drawn(described.config, built, changed, lora=lora, family=FAMILIES[described.architecture])
        model = dataclasses.replace(model, fingerprint=kind)
        evaluate = likelihood(model, layout=described.layout)
        batches = tiny_batches(LONG, at_step, layout=described.layout)
        try:
            train(model, batches, LONG, workdir, evaluate=evaluate, select="likelihood")
        except Interrupted:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("mesh", type=int, nargs=4, help="data, fsdp, expert and tensor")
    parser.add_argument("--stop", type=int, default=-1, help="the step in which process 0 is told to stop")
    args = parser.parse_args()
    initialize()
    data, fsdp, expert, tensor = args.mesh
    ended = layout_run(args.kind, MeshConfig(data, fsdp, tensor, expert=expert), args.workdir, args.stop)
    return 0 if ended else 75


if __name__ == "__main__":
    sys.exit(main())
