"""Names and files of results that need no JAX: a report reads what a machine with accelerators wrote."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
ALL = "all"
ROWS = "rows.jsonl"
AT = "@"  # in a system's name, between its paradigm and the name of its θ_τ, where there are several


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def paradigm_of(system: str) -> str:
    """Return the name of a system's paradigm, whichever θ_τ it has."""
    return system.partition(AT)[0]


def file_hash(path: str | Path) -> str:
    """Return sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
