"""What an input gains over the score without it, language by language, both from different rows.

A language that scores low by chance seems to gain much where gain and score are of the same rows (regression to the
mean). So the rows of each language are halved, the score is taken from one half and the gain from the other, many
times over.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from fiat_jax.errors import UserError
from fiat_jax.evaluation.statistics import interval

HALVINGS = 2_000


@dataclass(frozen=True)
class Gains:
    """Per cent, by language: the score without the input, and what it gains on the other half of the rows.

    `correlation` is Spearman's over the languages, the mean of all halvings; `ci95` its interval where the rows of each
    half are redrawn too.
    """

    baselines: Mapping[str, float]
    gains: Mapping[str, float]
    correlation: float
    ci95: tuple[float, float]


def gains_by_language(
    without: Mapping[str, np.ndarray], with_it: Mapping[str, np.ndarray], *, halvings: int = HALVINGS, seed: int = 0
) -> Gains:
    """Return the gains of each language, [n] values in 0..1 of the same rows without the input and with it.

    Raises:
        UserError: fewer than three languages, or a language of fewer than two rows.
    """
    if len(without) < 3 or min(map(len, without.values())) < 2:
        raise UserError("gains are ranked over three or more languages of two or more rows each")
    rng = np.random.default_rng(seed)
    halved = [_halved(without[language], with_it[language], halvings, rng) for language in without]
    baselines_RL, gains_RL, redrawn_baselines_RL, redrawn_gains_RL = np.stack(halved, axis=2)
    correlations = _spearman(baselines_RL, gains_RL)
    return Gains(
        baselines=dict(zip(without, (100 * baselines_RL.mean(0)).tolist(), strict=True)),
        gains=dict(zip(without, (100 * gains_RL.mean(0)).tolist(), strict=True)),
        correlation=float(correlations.mean()),
        ci95=interval(_spearman(redrawn_baselines_RL, redrawn_gains_RL)),
    )


def _halved(without: np.ndarray, with_it: np.ndarray, halvings: int, rng: np.random.Generator) -> np.ndarray:
    """Return [4, halvings]: the score of one half and the gain of the other, then both with their rows redrawn."""
    without, gain = np.asarray(without, np.float64), np.asarray(with_it, np.float64) - without
    order = rng.permuted(np.tile(np.arange(len(without)), (halvings, 1)), axis=1)
    halves = order[:, : len(without) // 2], order[:, len(without) // 2 :]
    redrawn = [np.take_along_axis(half, rng.integers(half.shape[1], size=half.shape), axis=1) for half in halves]
    return np.stack([
        without[halves[0]].mean(1), gain[halves[1]].mean(1), without[redrawn[0]].mean(1), gain[redrawn[1]].mean(1)
    ])  # fmt: skip


def _spearman(a_RL: np.ndarray, b_RL: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each row; 0 where all of one are equal."""
    ranks = [rankdata(x, axis=1) for x in (a_RL, b_RL)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)
