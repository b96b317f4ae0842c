"""What one run of a compiled program does on one device: operations, bytes and collectives, loops by their trips."""

import dataclasses
import math
import re
from collections.abc import Mapping

from fiat_jax.planning.groups import axes_of, groups_of
from fiat_jax.planning.hlo import Computation, Instruction, Module
from fiat_jax.planning.loops import trips_of
from fiat_jax.planning.products import product_flops
from fiat_jax.planning.traffic import FREE_CALLS, is_step, offloaded, touched

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
NOT_COUNTED = re.compile(r'custom_call_target="([^"]*)"')
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

    def over(self, runs: float) -> "Account":
        """Return the share of one of so many runs that a program makes at a time."""
        collectives = tuple(
            dataclasses.replace(one, count=one.count / runs, bytes=one.bytes / runs) for one in self.collectives
        )
        return dataclasses.replace(self, flops=self.flops / runs, bytes=self.bytes / runs, collectives=collectives)


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
                self.bytes += times * touched(self.module, where, one)
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
            elif inside := offloaded(self.module, one):
                for inner in inside:
                    self.run(inner, times, fused)
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
        if is_step(where, one):
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
