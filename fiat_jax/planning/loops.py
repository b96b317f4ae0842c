"""How often the body of a loop runs: as XLA says, as its counter says, or as the plan assumes."""

import dataclasses
import re
from collections.abc import Mapping

from fiat_jax.planning.hlo import Computation, Instruction, Module

KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
PASSED_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")


@dataclasses.dataclass(frozen=True)
class Trips:
    """How often a loop's body runs, and by what it is known: "program", "assumed" or "unknown" (counted once)."""

    count: float
    source: str


def trips_of(module: Module, where: Computation, loop: Instruction, assumed: Mapping[str, float]) -> Trips:
    """Return the trips of a while instruction.

    Args:
        assumed: the end of an `op_name` → trips, for loops whose length data decide; "" stands for none of them.
    """
    known = KNOWN.search(loop.attributes)
    if known:
        return Trips(int(known[1]), "program")
    counted = _by_counter(module, where, loop)
    if counted is not None:
        return Trips(counted, "program")
    for ending, count in assumed.items():
        if loop.op_name.endswith(ending):
            return Trips(count, "assumed")
    return Trips(1, "unknown")


def _by_counter(module: Module, where: Computation, loop: Instruction) -> int | None:
    """Return the trips of `for (i = start; i < stop; i += step)`; None where it is no such loop."""
    condition = module.computations[loop.calls("condition")[0]]
    body = module.computations[loop.calls("body")[0]]
    test = condition.root
    if test.opcode == "fusion":  # a backend that wraps the comparison
        test = _unwrapped(module, test)
    if test is None or test.opcode != "compare" or len(test.operands) != 2:
        return None
    counter, stop = (_through(condition, name) for name in condition.root.operands[:2])
    if counter is None or stop is None or counter.opcode != "get-tuple-element":
        return None
    index = _index(counter)
    limit, start = _constant(stop), _constant(_initial(where, loop, index))
    step = _step(body, index)
    if limit is None or start is None or not step:
        return None
    if "direction=LT" in test.attributes and step > 0:
        return max(0, -(-(limit - start) // step))
    if "direction=GT" in test.attributes and step < 0:
        return max(0, -(-(start - limit) // -step))
    return None


def _unwrapped(module: Module, fusion: Instruction) -> Instruction | None:
    """Return the comparison of a fusion that is nothing else, its operands those of the fusion in order."""
    inner = module.computations[fusion.calls("calls")[0]]
    order = [inner.parameters[n].name for n in sorted(inner.parameters)]
    return inner.root if list(inner.root.operands) == order else None


def _index(one: Instruction) -> int:
    found = re.search(r"index=(\d+)", one.attributes)
    return int(found[1]) if found else 0


def _through(where: Computation, name: str) -> Instruction | None:
    """Return what a value is behind copies and casts."""
    one = where.by_name.get(name)
    while one is not None and one.opcode in PASSED_ON and one.operands:
        one = where.by_name.get(one.operands[0])
    return one


def _initial(where: Computation, loop: Instruction, index: int) -> Instruction | None:
    """Return what an entry of a loop's state is before its first trip."""
    state = _through(where, loop.operands[0])
    if state is None or state.opcode != "tuple":
        return None
    return _through(where, state.operands[index])


def _constant(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "constant":
        return None
    return int(one.inside) if re.fullmatch(r"-?\d+", one.inside) else None


def _step(body: Computation, index: int) -> int | None:
    """Return by how much a trip moves an entry of the state, where it adds constants to it."""
    if body.root.opcode != "tuple":
        return None
    one, total = _through(body, body.root.operands[index]), 0
    while one is not None and one.opcode == "add":
        parts = [_through(body, name) for name in one.operands]
        constants = [_constant(part) for part in parts]
        if constants.count(None) != 1:
            return None
        total += next(value for value in constants if value is not None)
        one = parts[constants.index(None)]
    begins = one is not None and one.opcode == "get-tuple-element" and _index(one) == index
    return total if begins and one is not None and body.by_name[one.operands[0]].opcode == "parameter" else None
