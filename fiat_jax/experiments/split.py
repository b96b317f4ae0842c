"""`fiat data split`: one file into splits, folds or nested subsets."""

import argparse
from collections.abc import Mapping, Sequence

from rich.console import Console

from fiat_jax.errors import UserError
from fiat_jax.tasks.readers import read_source
from fiat_jax.tasks.splits import divide, folds, nested_subsets, write_splits
from fiat_jax.tasks.task import Row


def split_file(args: argparse.Namespace, console: Console) -> None:
    """Divide `args.source` as the flags say, and write one JSONL file a part into `args.out`."""
    rows = list(read_source(args.source))
    stratify = tuple(name for name in args.stratify.split(",") if name)
    parts: Mapping[str, Sequence[Row]]
    if args.folds:
        made = folds(rows, args.folds, args.seed, stratify=stratify, group_field=args.group)
        parts = {}
        for index, (train, held) in enumerate(made):
            parts |= {f"fold{index}-train": train, f"fold{index}-validation": held}
    elif args.sizes:
        if args.group:
            raise UserError("--group goes with parts and folds; nested subsets take single rows")
        sizes = [int(size) for size in _numbers(args.sizes)]
        parts = {f"train-{n}": kept for n, kept in nested_subsets(rows, sizes, args.seed, stratify=stratify).items()}
    else:
        parts = divide(rows, _shares(args.shares), args.seed, stratify=stratify, group_field=args.group)
    for name, path in write_splits(parts, args.out).items():
        console.print(f"{path}: {len(parts[name]):,} rows", highlight=False)


def _numbers(text: str) -> list[str]:
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise UserError(f"--sizes {text}: expected whole numbers such as 200,1000")
    return text.split(",")


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise UserError(f"--shares {text}: expected NAME=SHARE pairs such as train=0.9,validation=0.1") from None
