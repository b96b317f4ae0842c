"""How often a tuned model's number is the large model's, by its digits and by how often training rows have it.

    .venv/bin/python benchmarks/copying.py TRAIN.jsonl WORKDIR/predictions 'fiat@instructed-650-seed*'

Training rows have `big_answer`, what the large model's reasoning ends in: the number that θ_τ has to write again. The
predictions are those of `fiat experiment`, icl's among them; the files that a pattern names are counted together.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from fiat_jax.evaluation.predictions import read_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("pattern")
    given = parser.parse_args()

    rows = [json.loads(line) for line in given.train.read_text("utf-8").splitlines()]
    seen = Counter(str(row["big_answer"]) for row in rows)
    large = {one.id: one for one in read_predictions(given.predictions / "icl.jsonl")}
    files = sorted(given.predictions.glob(f"{given.pattern}.jsonl"))
    assert files, f"no {given.pattern}.jsonl in {given.predictions}"
    asked, copied, mended = Counter(), Counter(), 0
    for file in files:
        for one in read_predictions(file):
            number = str(large[one.id].prediction)
            same = one.prediction == number
            mended += not same and one.prediction == one.gold
            often = "3 or more" if seen[number] > 2 else seen[number]
            for kind in ("all", f"{len(number)} digits", f"in {often} training rows"):
                asked[kind] += 1
                copied[kind] += same
    print(f"{len(files)} runs, rows that answer as the large model does (of rows, per cent):")
    for kind, count in sorted(asked.items()):
        print(f"  {kind:26} {copied[kind]:4} of {count:4}  {100 * copied[kind] / count:5.1f}")
    print(f"right where they answer otherwise: {mended} of {asked['all'] - copied['all']}")


if __name__ == "__main__":
    main()
