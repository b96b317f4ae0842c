"""A training run of seconds on generated examples: for tests, and as a program for what takes processes of its own."""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from support.drawn import drawn

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.data.layout import DecoderLayout
from fiat_jax.distributed import initialize
from fiat_jax.errors import Interrupted
from fiat_jax.inference.scoring import TargetScorer
from fiat_jax.models.checkpoints import host_array
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import Model
from fiat_jax.remote import doubled, is_remote
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.loop import train
from fiat_jax.training.optimizer import OptimizerConfig
from fiat_jax.training.watch import watched

TINY = DecoderConfig(
    vocab_size=48,
    width=16,
    num_layers=2,
    num_kv_heads=4,
    queries_per_kv_head=2,
    head_dim=8,
    mlp_width=32,
    max_length=32,
    tied_head=True,
)
LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = TrainConfig(
    epochs=3, batch_rows=8, row_length=24, checkpoint_every=5, optimizer=OptimizerConfig(learning_rate=1e-2)
)
# Where layouts are compared: Adam would divide the rounding of gradients that are zero by itself.
STEADY = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-4))


def tiny_examples(count: int = 128, seed: int = 0) -> Examples:
    """Examples of 3 to 12 tokens whose targets have 1 to 5."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(0, TINY.vocab_size, rng.integers(low, high + 1)).astype(np.int32)

    return Examples.of(Example(f"row {n}", "und", ids(3, 12), ids(1, 5)) for n in range(count))


def tiny_model(
    mesh: MeshConfig | Mesh | None = None, *, lora: LoraConfig | None = LORA, seed: int = 0, **options
) -> Model:
    """A random model, on one device where no mesh is given.

    Its weights are large enough for every path to matter, and not so large that rounding grows from step to step.
    """
    built = MeshConfig(1, 1, 1).build(jax.devices()[:1]) if mesh is None else mesh
    built = built.build() if isinstance(built, MeshConfig) else built

    def changed(model: Model) -> Model:
        louder = jax.jit(lambda tree: jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, tree))
        grown = {"frozen": louder(model.frozen)} if lora else {"trainable": louder(model.trainable)}
        return dataclasses.replace(model, **grown)

    model = drawn(options.pop("config", TINY), built, changed, lora=lora, seed=seed, **options)
    return dataclasses.replace(model, fingerprint="tiny")


class Watched:
    """Batches that call `at_step` before they give the batch of a step."""

    def __init__(self, batches: TrainBatches, at_step=lambda step: None):
        self.batches, self.at_step = batches, at_step

    def num_steps(self, epochs: int) -> int:
        return self.batches.num_steps(epochs)

    def batch(self, step: int):
        self.at_step(step)
        return self.batches.batch(step)

    def row_ids(self, step: int) -> list[str]:
        return self.batches.row_ids(step)


def tiny_batches(
    config: TrainConfig = CONFIG, at_step=lambda step: None, count: int = 128, layout=DecoderLayout
) -> Watched:
    """The batches of the tiny examples."""
    examples = tiny_examples(count)
    return Watched(TrainBatches(examples, config.row_length, config.batch_rows, config.seed, layout), at_step)


def likelihood(model: Model, at_evaluation=lambda: None, layout=DecoderLayout):
    """An evaluator: the mean log-likelihood of a few examples' targets."""
    batch = TrainBatches(tiny_examples(16, seed=1), CONFIG.row_length, CONFIG.batch_rows, 0, layout).batch(0)
    scorer = TargetScorer(model)

    def evaluate(trainable):
        at_evaluation()
        return {"likelihood": float(np.average(scorer(batch, trainable=trainable), weights=batch["weights"]))}

    return evaluate


def main() -> int:
    """Train in a workdir, ending with a signal to itself at a step or evaluation; print the best evaluation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", help="a directory, or one in an object store")
    parser.add_argument("--kill_at", type=int, default=-1, help="SIGKILL before this step")
    parser.add_argument("--kill_evaluation", type=int, default=-1, help="SIGKILL in this evaluation of the process")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before every step and evaluation")
    parser.add_argument("--checkpoint_every", type=int, default=CONFIG.checkpoint_every)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--mixed", action="store_true", help="devices of all processes in turn, as on a TPU slice")
    args = parser.parse_args()
    initialize()
    evaluations = iter(range(1000))

    def die_if(now: bool) -> None:
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    devices = sorted(jax.devices(), key=lambda one: (one.id % jax.local_device_count() if args.mixed else 0, one.id))
    mesh = MeshConfig(tensor=args.tensor).build(devices)
    where = doubled(args.workdir) if is_remote(args.workdir) else contextlib.nullcontext(Path(args.workdir))
    with where as workdir, watched("the run"), jax.set_mesh(mesh):
        model = tiny_model(mesh)
        evaluate = likelihood(
            model, lambda: die_if(next(evaluations) == args.kill_evaluation) or time.sleep(args.pause)
        )
        batches = tiny_batches(at_step=lambda step: die_if(step == args.kill_at) or time.sleep(args.pause))
        try:
            config = dataclasses.replace(CONFIG, checkpoint_every=args.checkpoint_every)
            done = train(model, batches, config, workdir, evaluate=evaluate, select="likelihood")
        except Interrupted:
            return 75
        parameters = hashlib.sha256(b"".join(host_array(x).tobytes() for x in jax.tree.leaves(done.trainable)))
    print("best", done.history.best, parameters.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
