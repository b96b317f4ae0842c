"""A compiled program's text as computations of instructions: what XLA prints, on every backend, read once."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "tf32": 32, "c64": 64, "c128": 128}  # others end in theirs
HBM = 0  # the memory space of what names none; TPUs keep some arrays elsewhere (1: VMEM)

ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
END = re.compile(r"^\}(?!\})")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
OPERAND = re.compile(r"%([\w.\-]+)")
BARE = re.compile(r"([A-Za-z_][\w.\-]*)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: its dtype and dimensions, and its layout as XLA prints it."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """The bits of an element."""
        found = re.match(r"[a-z]+(\d+)", self.dtype)
        return BITS[self.dtype] if self.dtype in BITS else int(found[1]) if found else 0

    @property
    def bytes(self) -> int:
        """Its bytes, without the padding of tiles."""
        return -(-self.size * self.bits // 8)

    @property
    def memory_space(self) -> int:
        """Where it lies: `HBM`, or on chip."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else HBM

    @property
    def padded_bytes(self) -> int:
        """Its bytes with its minor dimensions filled up to whole tiles, as a TPU holds it."""
        order, tiles = self.layout.partition(":")[::2]
        tile = re.search(r"T\(([\d,]+)\)", tiles)
        if tile is None or not order:
            return self.bytes
        sizes, dims = [int(n) for n in tile[1].split(",")], list(self.dims)
        for axis, size in zip(order.split(","), reversed(sizes), strict=False):  # the minor dimension first
            dims[int(axis)] = -(-dims[int(axis)] // size) * size
        return -(-math.prod(dims) * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result, of a tuple all of them."""
        return arrays_of(self.shape)

    def calls(self, *names: str) -> list[str]:
        """Return the computations that these attributes name, one or several in braces."""
        found = []
        for name in names:
            for braces, one in re.findall(rf"\b{name}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.attributes):
                found += OPERAND.findall(braces) if braces else [one]
        return found

    @property
    def op_name(self) -> str:
        """Where in the traced program it is from: "jit(step)/while/body/dot_general"; "" if XLA made it up."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Computation:
    """Instructions in order, by name, and who reads each of them."""

    def __init__(self, name: str, instructions: Sequence[Instruction]):
        self.name, self.instructions = name, tuple(instructions)
        self.by_name = {one.name: one for one in instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next((one for one in self.instructions if one.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found

    def operands(self, one: Instruction) -> list[Instruction]:
        """Return the instructions that one reads."""
        return [self.by_name[name] for name in one.operands if name in self.by_name]

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Its parameters by their number."""
        return {int(one.inside): one for one in self.instructions if one.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that it begins with."""

    computations: Mapping[str, Computation]
    entry: Computation


def arrays_of(shape: str) -> tuple[Array, ...]:
    """Return the arrays of a shape as XLA prints it."""
    return tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in ARRAY.findall(shape)
    )


def parse(text: str) -> Module:
    """Return a program of its text (`compiled.as_text()`)."""
    found: dict[str, Computation] = {}
    entry, name = None, ""
    lines: list[str] = []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif END.match(line) and name:
            found[name], name = Computation(name, [one for each in lines if (one := _instruction(each))]), ""
        elif INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # attributes of a Pallas kernel go on over several lines
    if entry is None:
        raise ValueError("this text has no ENTRY computation: it is no HLO module")
    return Module(found, found[entry])


def _instruction(line: str) -> Instruction | None:
    begin = INSTRUCTION.match(line)
    if begin is None:
        return None
    at = begin.end()
    shape_end = _closing(line, at) if line[at] == "(" else line.index(" ", at)
    opcode = OPCODE.match(line, shape_end)
    if opcode is None:
        return None
    end = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : end - 1]
    operands = OPERAND if "%" in inside else BARE  # before optimization names are bare
    return Instruction(
        begin[2], line[at:shape_end], opcode[1], tuple(operands.findall(inside)), inside, line[end:], bool(begin[1])
    )


def _closing(line: str, at: int) -> int:
    """Return the place behind the bracket that closes the one at `at`."""
    depth = 0
    for place in range(at, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if depth == 0:
            return place + 1
    return len(line)


def walk(module: Module) -> Iterator[tuple[Computation, Instruction]]:
    """Yield every instruction of every computation, with the computation."""
    for computation in module.computations.values():
        for one in computation.instructions:
            yield computation, one
