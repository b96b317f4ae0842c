"""What there is to learn beyond θ_β's answer: logistic regressions on word counts, by the number of training rows.

    .venv/bin/python benchmarks/word_counts.py TRAIN.jsonl VALIDATION.jsonl --fields premise hypothesis

Rows have an `answer`, θ_β's `reasoning` and its `big_answer`. Three readers, each of what the one before it reads as
well: θ_β's answer, its reasoning, the fields. Counts are of one and two words; how strongly the weights are held down
is chosen on a tenth of the rows, as `fiat experiment` selects. A reader knows no word that its rows do not show it, so
what it gains over θ_β with all rows and not with a few is what takes rows to learn.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from fiat_jax.evaluation.statistics import interval, resampled_means

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
ANSWER_WEIGHT = 3.0  # of the answer among some twenty words
RESAMPLES = 2000

Rows = Sequence[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def features(rows: Rows, others: Sequence[Rows], fields: Sequence[str]) -> list[csr_matrix]:
    """Return the features of `rows` and of each of `others`: (rows, features), of words that `rows` have twice."""
    labels = sorted({row["answer"] for row in rows})
    parts = [[csr_matrix([[ANSWER_WEIGHT * (row["big_answer"] == label) for label in labels] for row in one])]
             for one in (rows, *others)]  # fmt: skip
    for name in fields:
        counts = CountVectorizer(ngram_range=(1, 2), binary=True, min_df=2).fit(row[name] for row in rows)
        for part, one in zip(parts, (rows, *others), strict=True):
            part.append(counts.transform(row[name] for row in one))
    return [csr_matrix(hstack(part)) for part in parts]


def right(train: Rows, held: Rows, test: Rows, fields: Sequence[str]) -> np.ndarray:
    """Return which of the test rows a reader answers rightly: (rows,), of the strength that is best on `held`."""
    x_train, x_held, x_test = features(train, [held, test], fields)
    gold = [np.array([row["answer"] for row in rows]) for rows in (train, held, test)]
    models = [LogisticRegression(C=strength, max_iter=300).fit(x_train, gold[0]) for strength in STRENGTHS]
    best = max(models, key=lambda model: float(np.mean(model.predict(x_held) == gold[1])))
    return best.predict(x_test) == gold[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--fields", nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 0], help="0: all rows")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    train, test = read(args.train), read(args.validation)
    large = np.array([row["big_answer"] == row["answer"] for row in test])
    print(f"θ_β alone: {100 * large.mean():.1f} of {len(test):,} rows")
    found = {}
    readers = {"answer": [], "and reasoning": ["reasoning"], "and fields": ["reasoning", *args.fields]}
    for size in args.sizes:
        for name, fields in readers.items():
            by_seed = []
            for seed in range(args.seeds):
                drawn = [train[n] for n in np.random.default_rng(seed).permutation(len(train))[: size or None]]
                held = len(drawn) // 10
                by_seed.append(right(drawn[held:], drawn[:held], test, fields))
            gain = np.mean(by_seed, 0) - large
            low, high = interval(resampled_means(gain, RESAMPLES, np.random.default_rng(0)))
            found[f"{size or len(train)}, {name}"] = [100 * float(figure) for figure in (gain.mean(), low, high)]
            print(
                f"{size or len(train):>6,} rows, {name:<14} {100 * np.mean(by_seed):.1f}, minus θ_β "
                f"{100 * gain.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            )
    print(json.dumps({"gain over θ_β": found}, ensure_ascii=False))


if __name__ == "__main__":
    main()
