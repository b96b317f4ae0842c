"""Texts of a tiny engine in a process of its own, one of several of a run or the only one: `python FILE`."""

import json
import sys

import numpy as np
from support.drawn import drawn
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.distributed import initialize
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.sharding import MeshConfig


def engine_texts() -> list[list[int]]:
    """Texts of more requests than there are slots, behind a prefix and without, greedy and sampled."""
    model = drawn(TINY, MeshConfig(2, 2, 2).build(), lambda model: louder(model, 8))
    engine = Engine(model, -1, EngineConfig(8, 48, 64, block=4, prefill_rows=4, shortest_bucket=48))
    rng = np.random.default_rng(0)
    key = engine.add_prefix(rng.integers(0, 61, 50).tolist())
    prompts = [tuple(rng.integers(0, 61, n + 1).tolist()) for n in range(14)]
    requests = [
        Request(ids, 8, prefix=("", key)[n % 2], temperature=float(n % 3), seed=n) for n, ids in enumerate(prompts)
    ]
    return [list(one.tokens) for (one,) in engine.generate(requests)]


if __name__ == "__main__":
    initialize()
    print(json.dumps(engine_texts()))
    sys.exit(0)
