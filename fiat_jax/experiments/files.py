"""Names and files of results that need no JAX: a report reads what a machine with accelerators wrote."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
ALL = "all"
ROWS = "rows.jsonl"


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def file_hash(path: str | Path) -> str:
    """Return sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
