"""The part of a task's rows that one machine of several asks about."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.tasks.task import Row, Task, row_key


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `of`. A row's content alone chooses its part, wherever it stands."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "0/4", the first of four."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        index, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if index >= of:
            raise UserError(f"--shard={text}: expected i/n with i from 0; the shards of four are 0/4, 1/4, 2/4 and 3/4")
        return cls(index, of)

    def rows(self, task: Task, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of this part."""
        return [row for row in rows if self.of == 1 or self.holds(row_key(task, row))]

    def holds(self, key: str) -> bool:
        """Whether the row of this content hash is in this part."""
        return int(key[:16], 16) % self.of == self.index

    def file(self, name: str) -> str:
        """Return a file's name with the part in it where there are several: x.jsonl, x-0-of-4.jsonl."""
        stem, dot, suffix = name.rpartition(".")
        return name if self.of == 1 else f"{stem}-{self.index}-of-{self.of}{dot}{suffix}"


EVERYTHING = Shard()
