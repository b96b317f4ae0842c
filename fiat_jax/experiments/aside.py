"""Cells that were made with other settings: kept aside when a cell of their name is made anew, and taken back."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from fiat_jax.data.examples import content_key
from fiat_jax.distributed import barrier, is_main
from fiat_jax.experiments.files import write_json

logger = logging.getLogger(__name__)
ASIDE = "superseded"


def make_place(workdir: Path, cell: str, identity: Mapping[str, str]) -> None:
    """Leave a cell's place to one of this identity, and write it down: a cell of another one that is there goes aside.

    What was put aside before under this identity comes back. Nothing is removed.
    """
    if is_main():
        note = workdir / "cells" / f"{cell}.identity.json"
        held = json.loads(note.read_text("utf-8")) if note.exists() else None
        if held is not None and held != dict(identity):
            names = [name for name in {**held, **identity} if held.get(name) != identity.get(name)]
            kept = _aside(workdir, cell, held)
            logger.warning(
                "%s: %s differ from what it was made with; the old cell is in %s", cell, ", ".join(names), kept
            )
            for file in _files(workdir, cell):
                _move(file, kept / file.relative_to(workdir))
        back = _aside(workdir, cell, identity)
        if back.exists() and not note.exists():
            for file in _files(back, cell):
                _move(file, workdir / file.relative_to(back))
            shutil.rmtree(back)
        write_json(note, dict(identity))
    barrier(f"place of {cell}")


def _aside(workdir: Path, cell: str, identity: Mapping[str, str]) -> Path:
    return workdir / ASIDE / f"{cell}.{content_key(dict(identity))[:12]}"


def _files(root: Path, cell: str) -> list[Path]:
    """Return what a cell has in a working directory; its identity last, so that a kill between the moves shows."""
    names = (f"predictions/{cell}.jsonl", f"predictions/{cell}-bare.jsonl", f"cells/{cell}.json", f"cells/{cell}")
    return [path for name in (*names, f"cells/{cell}.identity.json") if (path := root / name).exists()]


def _move(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    file.replace(to)
