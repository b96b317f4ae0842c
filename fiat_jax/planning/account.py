"""What one run of a compiled program does on one device: operations, bytes and collectives, loops by their trips."""

import dataclasses
import math
import re
from collections.abc import Mapping

from fiat_jax.planning.groups import axes_of, groups_of
from fiat_jax.planning.hlo import HBM, Array, Computation, Instruction, Module
from fiat_jax.planning.loops import trips_of
from fiat_jax.planning.products import product_flops

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# they move nothing: names, parts of tuples, other views of the same bytes, and those whose bodies are counted
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "add-dependency"),
}
NOT_COUNTED = re.compile(r'custom_call_target="([^"]*)"')
FREE_CALLS = (
    *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"),
    *("AsyncCollectiveStart", "AsyncCollectiveDone"),
)
# A TPU's compiler cuts one exchange into steps that it fuses with other work; each names the whole of it again.
STEP, BEGIN, DONE = "async_collective_fusion_config", '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'
LARGE = 1 << 20  # bytes of a call's result from which on it is told that its operations are not counted


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of one array along some mesh axes.

    Args:
        bytes: that leave each device in a run, over all `count` of its calls.
        largest: bytes of the whole array that one call puts together, or adds up.
        op_name: where in the traced program it is from.
    """

    kind: str
    axes: tuple[str, ...]
    array: str
    count: float
    bytes: float
    largest: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class Account:
    """What one run of a program does on each device.

    Args:
        flops: of its matrix products.
        bytes: read from and written to the device's main memory.
        assumed, unknown: loops whose trips the caller said, and those that were counted once, by their op_name.
        uncounted: calls of kernels whose operations are not in `flops`.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    assumed: Mapping[str, float]
    unknown: tuple[str, ...]
    uncounted: tuple[str, ...]


class _Counter:
    def __init__(self, module: Module, mesh_shape: Mapping[str, int], trips: Mapping[str, float]):
        self.module, self.mesh_shape, self.trips = module, mesh_shape, trips
        self.flops = self.bytes = 0.0
        self.collectives: dict[tuple, list[float]] = {}
        self.assumed: dict[str, float] = {}
        self.unknown: dict[str, None] = {}
        self.uncounted: dict[str, None] = {}

    def run(self, where: Computation, times: float, fused: bool = False) -> None:
        """Add what a computation does in so many runs; within a fusion only its ends touch memory."""
        for one in where.instructions:
            self.flops += times * product_flops(where, one)
            if not fused:
                self.bytes += times * _touched(self.module, where, one)
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                self._exchange(where, one, kind, times)
            elif one.opcode == "while":
                self._loop(where, one, times)
            elif one.opcode in ("fusion", "call", "async-start"):
                for name in one.calls("calls", "to_apply"):
                    self.run(self.module.computations[name], times, fused or one.opcode == "fusion")
            elif one.opcode == "conditional":
                self._branch(one, times)
            elif one.opcode == "custom-call":
                target = NOT_COUNTED.search(one.attributes)
                large = max((array.bytes for array in one.arrays), default=0) >= LARGE
                if target and target[1] not in FREE_CALLS and not product_flops(where, one) and large:
                    self.uncounted[target[1]] = None

    def _loop(self, where: Computation, one: Instruction, times: float) -> None:
        trips = trips_of(self.module, where, one, self.trips)
        if trips.source == "assumed":
            self.assumed[one.op_name] = trips.count
        elif trips.source == "unknown":
            self.unknown[one.op_name] = None
        self.run(self.module.computations[one.calls("body")[0]], times * trips.count)

    def _branch(self, one: Instruction, times: float) -> None:
        """Add the branch that computes most: of one run only one is taken."""
        names = one.calls("branch_computations", "true_computation", "false_computation")
        found = []
        for name in names:
            counter = _Counter(self.module, self.mesh_shape, self.trips)
            counter.run(self.module.computations[name], times)
            found.append(counter)
        most = max(found, key=lambda counter: (counter.flops, counter.bytes))
        self.flops += most.flops
        self.bytes += most.bytes
        for own, theirs in (
            (self.assumed, most.assumed),
            (self.unknown, most.unknown),
            (self.uncounted, most.uncounted),
        ):
            own.update(theirs)  # pyright: ignore
        for key, (count, moved) in most.collectives.items():
            held = self.collectives.setdefault(key, [0.0, 0.0])
            held[0], held[1] = held[0] + count, held[1] + moved

    def _exchange(self, where: Computation, one: Instruction, kind: str, times: float) -> None:
        groups = groups_of(one, math.prod(self.mesh_shape.values()))
        size = max(map(len, groups))
        if _is_step(where, one):
            return
        operands = [array for operand in where.operands(one) for array in operand.arrays]
        if size < 2 or not operands:
            return
        given = sum(array.bytes for array in operands)
        if kind == "all-reduce" and _scattered(self.module, where):
            kind = "reduce-scatter"
        moved, whole = _moved(kind, given, size)
        largest = max(operands, key=lambda array: array.bytes)
        shape = f"{largest.dtype}[{','.join(map(str, largest.dims))}]"
        key = (kind, axes_of(groups, self.mesh_shape), shape, whole, one.op_name)
        held = self.collectives.setdefault(key, [0.0, 0.0])
        held[0], held[1] = held[0] + times, held[1] + times * moved


def account(module: Module, mesh_shape: Mapping[str, int], trips: Mapping[str, float] | None = None) -> Account:
    """Count a program.

    Args:
        mesh_shape: the sizes of the mesh axes, in the order in which the program numbers its devices.
        trips: the end of a loop's `op_name` → how often its body runs, for those whose length data decide.
    """
    counter = _Counter(module, mesh_shape, trips or {})
    counter.run(module.entry, 1.0)
    found = [
        Collective(kind, axes, array, count, moved, whole, name)
        for (kind, axes, array, whole, name), (count, moved) in counter.collectives.items()
    ]
    found.sort(key=lambda one: -one.bytes)
    return Account(
        counter.flops, counter.bytes, tuple(found), counter.assumed, tuple(counter.unknown), tuple(counter.uncounted)
    )


def _moved(kind: str, given: int, size: int) -> tuple[float, int]:
    """Return the bytes that leave a device, by the ring's algorithm, and those of the whole array."""
    share = (size - 1) / size
    if kind == "all-gather":
        return given * (size - 1), given * size
    if kind == "all-reduce":
        return 2 * given * share, given
    if kind == "collective-permute":
        return given, given
    return given * share, given  # reduce-scatter, all-to-all


def _scattered(module: Module, where: Computation) -> bool:
    """Whether this computation is a fusion of an all-reduce with the slice that each device keeps of it."""
    return where is not module.entry and "all-reduce-scatter" in where.name


def _is_step(where: Computation, one: Instruction) -> bool:
    """Whether an exchange is only a step, or the end, of one that another instruction begins."""
    return STEP in one.attributes and not any(BEGIN in other.attributes for other in where.instructions)


def _touched(module: Module, where: Computation, one: Instruction) -> int:
    """Return the bytes of main memory that an instruction reads and writes."""
    operands = where.operands(one)
    if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode == "custom-call" and any(f'"{name}"' in one.attributes for name in FREE_CALLS):
        return 0
    if one.opcode == "fusion":
        return _fusion(module, one, operands)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return _held(operands[0].arrays, one.arrays) + _main(one.arrays)
    if one.opcode == "slice-start":
        return _held(operands[0].arrays, one.arrays[1:2]) + _main(one.arrays[1:2])
    if one.opcode == "dynamic-update-slice":
        return _main(operands[1].arrays) + _held(one.arrays, operands[1].arrays)
    if one.opcode == "scatter":
        updates = operands[-1].arrays
        return _main(updates) + 2 * _held(one.arrays, updates)
    if one.opcode.endswith("-start"):  # of a pair (what is read, what is written, ...)
        return _main(operands[0].arrays) + _main(one.arrays[1:2] if one.opcode != "copy-start" else one.arrays[:1])
    return sum(_main(operand.arrays) for operand in operands) + _main(one.arrays)


def _main(arrays: tuple[Array, ...]) -> int:
    """Return the bytes of those arrays that lie in main memory."""
    return sum(array.bytes for array in arrays if array.memory_space == HBM)


def _held(arrays: tuple[Array, ...], part: tuple[Array, ...]) -> int:
    """Return the bytes of a part of arrays, where these lie in main memory."""
    return sum(array.bytes for array in part) if arrays and arrays[0].memory_space == HBM else 0


def _fusion(module: Module, one: Instruction, operands: list[Instruction]) -> int:
    """Return what a fusion reads and writes: of what it slices, or updates in place, only that part."""
    inner = module.computations[one.calls("calls")[0]]
    total = 0
    for number, operand in enumerate(operands):
        parameter = inner.parameters.get(number)
        if parameter is None or not operand.arrays or operand.arrays[0].memory_space != HBM:
            continue
        total += min(_main(operand.arrays), _read(inner, parameter))
    return total + _written(inner, one)


def _read(inner: Computation, value: Instruction) -> int:
    """Return the bytes of a fusion's parameter that it reads."""
    total = 0
    for user in inner.users.get(value.name, []):
        first = bool(user.operands) and user.operands[0] == value.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # in place: the rest stays
        elif (user.opcode == "tuple" and user.root) or _is_step(inner, user) or DONE in user.attributes:
            continue  # handed on as it is
        elif user.opcode in ("bitcast", "copy-start", "get-tuple-element"):
            total += _read(inner, user)
        else:
            return sum(array.bytes for array in value.arrays)
    return total


def _written(inner: Computation, one: Instruction) -> int:
    """Return the bytes that a fusion writes to main memory."""
    roots = inner.operands(inner.root) if inner.root.opcode == "tuple" else [inner.root]
    if len(roots) != len(one.arrays):
        return _main(one.arrays)
    total = 0
    for array, root in zip(one.arrays, roots, strict=True):
        while root.opcode == "bitcast" and root.operands:
            root = inner.by_name[root.operands[0]]
        if array.memory_space != HBM:
            continue
        if root.opcode == "parameter" or _is_step(inner, root) or DONE in root.attributes:
            continue
        if root.opcode == "dynamic-update-slice":
            total += sum(update.bytes for update in inner.by_name[root.operands[1]].arrays)
        else:
            total += array.bytes
    return total
