"""How often a tuned model answers as the large one does, by the answer's length and by how often it was trained on.

    .venv/bin/python benchmarks/copying.py TRAIN.jsonl WORKDIR/predictions 'fiat@instructed-650-seed*'

Training rows have `big_answer`, what the large model's reasoning ends in: the number that θ_τ has to write again, or
the choice that it has to rank first. The predictions are those of `fiat experiment`, icl's among them; the files that a
pattern names are counted together.
"""

import argparse
import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.prompts.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("pattern")
    parser.add_argument("--tokenizer", type=Path, help="θ_τ's directory: right answers by the mean of tokens too")
    given = parser.parse_args()

    rows = [json.loads(line) for line in given.train.read_text("utf-8").splitlines()]
    seen = Counter(str(row["big_answer"]) for row in rows)
    large = {one.id: one for one in read_predictions(given.predictions / "icl.jsonl")}
    files = sorted(given.predictions.glob(f"{given.pattern}.jsonl"))
    assert files, f"no {given.pattern}.jsonl in {given.predictions}"
    asked, copied, right, mended, shorter = Counter(), Counter(), Counter(), 0, 0
    for file in files:
        for one in read_predictions(file):
            answer = str(large[one.id].prediction)
            same = one.prediction == answer
            mended += not same and one.prediction == one.gold
            shorter += not same and len(one.prediction or "") < len(answer)
            kinds = ["all", f"in {'3 or more' if seen[answer] > 2 else seen[answer]} training rows"]
            if one.scores is None:
                kinds.append(f"{len(answer)} digits")
            else:
                kinds.append(f"{len(answer.split())} words" if answer in one.scores else "none of the choices")
            for kind in kinds:
                asked[kind] += 1
                copied[kind] += same
                right[kind] += one.prediction == one.gold
    print(f"{len(files)} runs, rows that answer as the large model does (of rows, per cent), and rightly:")
    for kind, count in sorted(asked.items()):
        print(f"  {kind:26} {copied[kind]:4} of {count:4}  {100 * copied[kind] / count:5.1f}  {right[kind]:4}")
    others = asked["all"] - copied["all"]
    print(f"where they answer otherwise: {mended} of {others} right, {shorter} with a shorter answer")
    if given.tokenizer is not None:
        count = answer_lengths(given.tokenizer)
        ranked = [one for file in files for one in read_predictions(file) if one.scores is not None]
        right = [max(one.scores, key=lambda c: one.scores[c] / count(c)) == one.gold for one in ranked]
        print(f"right if ranked by the mean of their tokens: {100 * sum(right) / len(right):.1f}% of {len(right)}")


def answer_lengths(directory: Path) -> Callable[[str], int]:
    """Return how many tokens an answer has, with the end of the text."""
    tokenizer = Tokenizer.from_directory(directory)
    return functools.cache(lambda answer: len(tokenizer.encode(answer)) + 1)


if __name__ == "__main__":
    main()
