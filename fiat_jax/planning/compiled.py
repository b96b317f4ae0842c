"""Compiling a program, and what is kept of it: its text, its memory, and what took most where it does not fit."""

import dataclasses
import gzip
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

SHOWN = 6  # of the largest arrays of a program that does not fit


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory that a program takes while it runs; `aliased` of its output lie in its arguments."""

    arguments: int
    temporaries: int
    output: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.arguments + self.temporaries + self.output - self.aliased + self.code


@dataclasses.dataclass(frozen=True)
class Facts:
    """A compiled program: what XLA said about it.

    Args:
        text: its HLO; "" where XLA cannot print it.
        refused: why the compiler gave it up; "" where it did not. The text is then that of its last attempt.
        largest: (bytes, array) of what lies in memory at its peak, where it was given up.
    """

    name: str
    text: str
    memory: Memory
    seconds: float
    refused: str = ""
    largest: tuple[tuple[int, str], ...] = ()


class DoesNotFit(Exception):
    """A program that the compiler gave up for want of memory, and that others wait for."""

    def __init__(self, facts: Facts):
        super().__init__(facts.refused)
        self.facts = facts


class Compiler:
    """Compiles programs and keeps their facts, in memory and beside the results: a rerun compiles nothing anew.

    Args:
        directory: where facts are kept.
        about: what of the target is not in a program's text (chips, versions).
    """

    def __init__(self, directory: Path, about: Mapping[str, Any], tpu: bool, told=lambda text: None):
        self.found: dict[str, Facts] = {}
        self._directory, self._about, self._tpu, self._told = directory, json.dumps(about, sort_keys=True), tpu, told

    def facts(self, name: str, lowered: jax.stages.Lowered) -> Facts:
        """Return the facts of a program, compiled or read."""
        path = self._path(name, lowered)
        if path.exists():
            self.found[name] = _read(path)
        else:
            self.compile(name, lowered, needed=False)
        return self.found[name]

    def compile_or_read(self, name: str, lowered: jax.stages.Lowered) -> Any:
        """Return the compiled program where others are made from it (decoding's layouts), else None; facts are kept.

        Raises:
            DoesNotFit: others are made from it, and the compiler gave it up.
        """
        if name == "decode":
            return self.compile(name, lowered)
        self.facts(name, lowered)
        return None

    def compile(self, name: str, lowered: jax.stages.Lowered, needed: bool = True) -> Any:
        """Compile a program, keep its facts, and return it; None where it does not fit.

        Raises:
            DoesNotFit: it is `needed`.
        """
        self._told(f"compiling {name}")
        begun, compiled, refused = time.monotonic(), None, ""
        with tempfile.TemporaryDirectory(prefix="fiat-plan-") as dump:
            options: dict[str, str | bool] | None = {"xla_dump_to": dump} if self._tpu else None
            try:
                compiled = lowered.compile(compiler_options=options)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                refused = str(error).splitlines()[0]
            memory, largest, text = self._facts(compiled, Path(dump))
        facts = Facts(name, text, memory, round(time.monotonic() - begun, 1), refused, largest)
        self.found[name] = facts
        _write(self._path(name, lowered), facts)
        if compiled is None and needed:
            raise DoesNotFit(facts)
        return compiled

    def _facts(self, compiled: Any, dump: Path) -> tuple[Memory, tuple, str]:
        assigned = _only(dump, "*after_optimizations-buffer-assignment.txt")
        text = _only(dump, "*after_optimizations.txt")
        if compiled is None:
            return (*read_assignment(assigned), text)
        m = compiled.memory_analysis()
        memory = Memory(
            m.argument_size_in_bytes,
            m.temp_size_in_bytes,
            m.output_size_in_bytes,
            m.alias_size_in_bytes,
            m.generated_code_size_in_bytes,
        )
        return memory, (), text or compiled.as_text()

    def _path(self, name: str, lowered: jax.stages.Lowered) -> Path:
        key = hashlib.sha256((self._about + lowered.as_text()).encode()).hexdigest()[:16]
        return self._directory / f"{name}-{key}.json.gz"


def _only(directory: Path, pattern: str) -> str:
    """Return the text of the file of this pattern; "" where there is none."""
    found = sorted(directory.glob(pattern), key=lambda path: path.stat().st_size)
    return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""


ALLOCATION = re.compile(r"^allocation \d+: size (\d+),(.*)$")
VALUE = re.compile(r"^ value: <\d+ .*> \(size=(\d+),offset=\d+\): (\S+)")


def read_assignment(text: str) -> tuple[Memory, tuple[tuple[int, str], ...]]:
    """Return the memory of a program and its largest arrays, of XLA's buffer assignment as it dumps it."""
    sizes = {"parameter": 0, "output": 0, "temp": 0}
    arrays: list[tuple[int, str]] = []
    main = True
    for line in text.splitlines():
        allocation = ALLOCATION.match(line)
        if allocation:
            size, kind = int(allocation[1]), allocation[2]
            main = "color" not in kind
            if not main or "thread-local" in kind or "constant" in kind:
                continue
            which = "parameter" if "parameter" in kind else "output" if "live-out" in kind else "temp"
            sizes[which] += size
        elif main and (value := VALUE.match(line)):
            arrays.append((int(value[1]), value[2].partition("{")[0]))
    largest = sorted(dict.fromkeys(arrays), reverse=True)[:SHOWN]
    return Memory(sizes["parameter"], sizes["temp"], sizes["output"], 0, 0), tuple(largest)


def _write(path: Path, facts: Facts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with gzip.open(temporary, "wt", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(facts), file)
    temporary.replace(path)


def _read(path: Path) -> Facts:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        held = json.load(file)
    held["memory"] = Memory(**held["memory"])
    held["largest"] = tuple(tuple(one) for one in held["largest"])
    return Facts(**held)
