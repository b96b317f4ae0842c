"""What the cuts of sampling leave, against sorting in float64."""

import jax
import numpy as np
import pytest

from fiat_jax.inference.sampling import CUT, Choice, choose, row_key
from fiat_jax.inference.sampling import _cut as cut

V = 257


def choice(rows: int, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> Choice:
    return Choice(
        temperature=np.full(rows, temperature, np.float32),
        top_k=np.full(rows, top_k, np.int32),
        top_p=np.full(rows, top_p, np.float32),
        key=np.stack([np.asarray(row_key(7, n)) for n in range(rows)]),
        alternatives=np.zeros(rows, np.int32),
    )


def kept(logits_V: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Return which tokens stay, by the definition: sorted, the first k, while the share before them is below p."""
    order = np.argsort(-logits_V, kind="stable")
    weights = np.exp(logits_V[order].astype(np.float64) - logits_V.max())
    before = (np.cumsum(weights) - weights) / weights.sum()
    stays = (np.arange(V) < (top_k or V)) & ((before < top_p) | (top_p == 1))
    return logits_V >= logits_V[order[max(stays.sum(), 1) - 1]]


ROWS = {
    "normal": lambda rng: rng.normal(size=V) * 4,
    "all negative": lambda rng: -50 - np.abs(rng.normal(size=V)),
    "with ties": lambda rng: np.round(rng.normal(size=V) * 2),
    "all equal": lambda rng: np.zeros(V),
    "one far ahead": lambda rng: np.where(np.arange(V) == 11, 300.0, rng.normal(size=V)),
    "some impossible": lambda rng: np.where(np.arange(V) % 3 == 0, -np.inf, rng.normal(size=V)),
    "huge and tiny": lambda rng: rng.normal(size=V) * np.float64(10) ** rng.integers(-30, 30, size=V),
    "zeros of both signs": lambda rng: np.where(np.arange(V) % 2 == 0, -0.0, 0.0) - (np.arange(V) > 100),
}


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (30, 1.0), (0, 0.9), (5, 0.7), (0, 1e-6), (V, 0.999), (3, 0.3)])
def test_what_stays_is_what_sorting_says(top_k, top_p):
    rng = np.random.default_rng(0)
    logits = np.stack([make(rng) for make in ROWS.values()]).astype(np.float32)
    found = np.asarray(jax.jit(cut)(logits, choice(len(logits), top_k, top_p)))
    for name, row, cut_row in zip(ROWS, logits, found, strict=True):
        stays = kept(row, top_k, top_p)
        assert np.array_equal(cut_row, np.where(stays, row, np.float32(CUT))), name


def test_without_cuts_nothing_is_lost():
    """Not even what a share of one rounds away."""
    logits = np.random.default_rng(1).normal(size=(4, V)).astype(np.float32) * 30
    assert np.array_equal(cut(logits, choice(4)), logits)
    alone = choice(4)
    alone.top_k[0] = 1  # another row's cut is its own
    assert np.array_equal(np.asarray(cut(logits, alone))[1:], logits[1:])


def test_a_share_too_small_for_a_float_leaves_the_likeliest():
    logits = np.random.default_rng(2).normal(size=(1, V)).astype(np.float32)
    assert (np.asarray(cut(logits, choice(1, top_p=1e-40))) > CUT).sum() == 1


def test_draws_follow_the_cut_distribution():
    logits_V = np.random.default_rng(3).normal(size=V).astype(np.float32) * 2
    rows, temperature = 20_000, 0.7
    drawn = choose(np.tile(logits_V, (rows, 1)), choice(rows, 8, 0.9, temperature), np.arange(rows)).token
    stays = kept(logits_V / np.float32(temperature), 8, 0.9)
    expected = np.where(stays, np.exp(logits_V.astype(np.float64) / temperature), 0)
    expected /= expected.sum()
    counts = np.bincount(np.asarray(drawn), minlength=V)
    assert not counts[~stays].any()
    spread = np.sqrt(rows * expected[stays] * (1 - expected[stays]))
    assert np.abs(counts[stays] - rows * expected[stays]).max() < 4 * spread.max()
