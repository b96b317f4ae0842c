"""The global order of examples: a pure function of the seed and the epoch."""

import numpy as np

EXAMPLES, ROWS, LENGTHS, BARE = 0, 1, 2, 3  # streams of random numbers: what an epoch permutes, each independently


def order(count: int, seed: int, epoch: int, stream: int = EXAMPLES) -> np.ndarray:
    """A permutation of `count` things, int64, the same on every host and for every number of hosts.

    Sorts the raw output of a counter-based generator, because NumPy keeps that stable between its versions and
    `Generator.permutation` not. Raises ValueError for a negative seed or epoch.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"expected a seed and an epoch of 0 or more, got seed {seed} and epoch {epoch}")
    generator = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")
