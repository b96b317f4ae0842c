"""Bytes of main memory that an instruction reads and writes: of what it slices or updates in place, the part."""

import re
from collections.abc import Sequence

from fiat_jax.planning.hlo import HBM, Array, Computation, Instruction, Module

# they move nothing: names, parts of tuples, other views of the same bytes, and those whose bodies are counted
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "add-dependency"),
}
FREE_CALLS = (
    *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"),
    *("AsyncCollectiveStart", "AsyncCollectiveDone"),
)
# A TPU's compiler cuts one exchange into steps that it fuses with other work; each names the whole of it again.
STEP, BEGIN, DONE = "async_collective_fusion_config", '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'
SLICES = ("dynamic-slice", "slice", "gather")
# each element of their results may need every element of their operands
WHOLE = {
    *("dot", "convolution", "reduce-window", "select-and-scatter", "sort", "fft", "custom-call", "cholesky", "rng"),
    *("triangular-solve", "while", "conditional", "call", "map", "topk"),
}


def touched(module: Module, where: Computation, one: Instruction) -> int:
    """Return the bytes of main memory that an instruction reads and writes."""
    operands = where.operands(one)
    if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode == "custom-call" and any(f'"{name}"' in one.attributes for name in FREE_CALLS):
        return 0
    if offloaded(module, one):
        return 0
    if one.opcode == "fusion":
        return _fusion(module, one, operands)
    if one.opcode in SLICES:
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


def offloaded(module: Module, one: Instruction) -> list[Computation]:
    """Return what a call leaves to other cores of the chip, such as lookups to a TPU's SparseCores; else nothing."""
    if one.opcode != "custom-call":
        return []
    named = [module.computations[name] for name in one.calls("called_computations")]
    return [inner for inner in named if any(each.opcode == "async-start" for each in inner.instructions)]


def is_step(where: Computation, one: Instruction) -> bool:
    """Whether an exchange is only a step, or the end, of one that another instruction begins."""
    return STEP in one.attributes and not any(BEGIN in other.attributes for other in where.instructions)


def _main(arrays: tuple[Array, ...]) -> int:
    """Return the bytes of those arrays that lie in main memory."""
    return sum(array.bytes for array in arrays if array.memory_space == HBM)


def _held(arrays: tuple[Array, ...], part: tuple[Array, ...]) -> int:
    """Return the bytes of a part of arrays, where these lie in main memory."""
    return sum(array.bytes for array in part) if arrays and arrays[0].memory_space == HBM else 0


def _fusion(module: Module, one: Instruction, operands: list[Instruction]) -> int:
    """Return what a fusion reads of its operands, and writes."""
    inner = module.computations[one.calls("calls")[0]]
    total = 0
    read = _read(module, inner, [array.size for array in one.arrays])
    for number, operand in enumerate(operands):
        for array, elements in zip(operand.arrays[:1], read.get(number, ()), strict=False):
            total += _bytes(array, elements) if array.memory_space == HBM else 0
    written = _written(module, inner)
    if len(written) != len(one.arrays):
        return total + _main(one.arrays)
    return total + sum(
        _bytes(array, elements)
        for array, elements in zip(one.arrays, written, strict=True)
        if array.memory_space == HBM
    )


def _bytes(array: Array, elements: int) -> int:
    return -(-min(elements, array.size) * array.bits // 8)


def _read(module: Module, inner: Computation, wanted: Sequence[int]) -> dict[int, list[int]]:
    """Return how many elements of each array of each parameter a fused computation reads.

    Whatever is fused is computed where it is wanted and nowhere else, so from the results backwards each instruction
    is asked for the elements that its readers want, a fusion within the fusion as well.

    Args:
        wanted: how many elements of each array of the result.
    """
    asked = {one.name: [0] * len(one.arrays) for one in inner.instructions}
    asked[inner.root.name] = list(wanted)
    in_place = {id(root) for root in _roots(inner)}
    found: dict[int, list[int]] = {}
    for one in reversed(inner.instructions):  # readers come behind what they read
        if one.opcode == "parameter":
            found[int(one.inside)] = asked[one.name]
            continue
        if one.opcode == "tuple" and one.root:
            _handed(inner, one, asked)
            continue
        if is_step(inner, one) or DONE in one.attributes:
            continue  # moved by what begins the exchange
        for operand, elements in _wants(module, inner, one, asked[one.name], id(one) in in_place):
            held = asked[operand.name]
            if len(elements) == len(held):
                asked[operand.name] = [
                    min(array.size, old + new) for array, old, new in zip(operand.arrays, held, elements, strict=True)
                ]
            else:
                asked[operand.name] = [array.size for array in operand.arrays]
    return found


def _handed(inner: Computation, root: Instruction, asked: dict[str, list[int]]) -> None:
    """Ask for the parts of a result; a parameter among them is handed on as it is."""
    for operand in inner.operands(root):
        if operand.opcode != "parameter":
            asked[operand.name] = [array.size for array in operand.arrays]


def _wants(
    module: Module, inner: Computation, one: Instruction, asked: list[int], in_place: bool
) -> list[tuple[Instruction, list[int]]]:
    """Return of each operand how many elements an instruction wants, where so many of its own are asked for."""
    operands = inner.operands(one)
    count, most = max(asked, default=0), max((array.size for array in one.arrays), default=0)
    whole = [(operand, [array.size for array in operand.arrays]) for operand in operands]
    if not count:
        return []
    if one.opcode == "fusion":
        read = _read(module, module.computations[one.calls("calls")[0]], asked)
        return [(operand, read.get(number, [0])) for number, operand in enumerate(operands)]
    if one.opcode == "get-tuple-element":
        part = re.search(r"index=(\d+)", one.attributes)
        assert part, f"a part of a tuple without its index: {one.name}"
        return [(operands[0], [count if n == int(part[1]) else 0 for n in range(len(operands[0].arrays))])]
    if one.opcode == "tuple" or one.opcode in WHOLE or one.opcode.startswith("all-"):
        return whole
    if one.opcode in SLICES:
        return [(operands[0], [count]), *whole[1:]]
    if one.opcode == "dynamic-update-slice":
        update = operands[1].arrays[0].size
        rest = 0 if in_place else max(0, count - update)
        return [(operands[0], [rest]), (operands[1], [min(update, count)]), *whole[2:]]
    if one.opcode == "scatter":
        updates = operands[-1].arrays[0].size
        return [(operands[0], [updates if in_place else count]), *whole[1:]]
    if one.opcode in ("reduce", "reduce-scatter"):
        return [(operand, [-(-array.size * count // most) for array in operand.arrays]) for operand in operands]
    return [(operand, [min(array.size, count) for array in operand.arrays]) for operand in operands]


def _roots(inner: Computation) -> list[Instruction]:
    """Return what a computation's results are behind other views of the same bytes."""
    found = inner.operands(inner.root) if inner.root.opcode == "tuple" else [inner.root]
    return [_behind(inner, one) for one in found]


def _behind(inner: Computation, one: Instruction) -> Instruction:
    while one.opcode == "bitcast" and one.operands:
        one = inner.by_name[one.operands[0]]
    return one


def _written(module: Module, inner: Computation) -> list[int]:
    """Return how many elements of each array of its result a fused computation writes."""
    found: list[int] = []
    for root in _roots(inner):
        sizes = [array.size for array in root.arrays]
        if root.opcode == "parameter" or is_step(inner, root) or DONE in root.attributes:
            sizes = [0] * len(sizes)
        elif root.opcode == "dynamic-update-slice":
            sizes = [inner.operands(root)[1].arrays[0].size]
        elif root.opcode == "scatter":
            sizes = [inner.operands(root)[-1].arrays[0].size]
        elif root.opcode == "fusion":
            sizes = _written(module, module.computations[root.calls("calls")[0]])
        found += sizes
    return found
