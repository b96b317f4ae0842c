"""Floating-point operations of matrix products and convolutions, two for each multiplication that counts."""

import math
import re

from fiat_jax.planning.hlo import Array, Computation, Instruction

GEMM = re.compile(r"__(cublas|onednn|triton)[\w$]*(gemm|matmul)", re.IGNORECASE)


def product_flops(where: Computation, one: Instruction) -> int:
    """Return the operations of a dot, a convolution or a call of a library's product; 0 of all else."""
    if one.opcode == "dot":
        return _dot(where, one)
    if one.opcode == "convolution":
        return _convolution(where, one)
    if one.opcode == "custom-call" and GEMM.search(one.attributes):
        return _dot(where, one)
    return 0


def _dot(where: Computation, one: Instruction) -> int:
    left = where.operands(one)[0].arrays[0]
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)', one.attributes)
    contracted = [left.dims[int(axis)] for axis in re.findall(r"\d+", found[1])] if found else [left.dims[-1]]
    return 2 * one.arrays[0].size * math.prod(contracted)


def _convolution(where: Computation, one: Instruction) -> int:
    """As XLA's HloCostAnalysis: products with padding, or with the zeros of a dilation, do not count.

    A TPU's compiler writes every product as a convolution, a batched one with a dilation that leaves one product a row.
    """
    left, right = (operand.arrays[0] for operand in where.operands(one)[:2])
    out = one.arrays[0]
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert found, f"a convolution without dim_labels: {one.name}"
    lhs, rhs, result = found[1], found[2], found[3]
    groups = [_number(one, name) for name in ("feature_group_count", "batch_group_count")]
    window = _window(one)
    flops = 2 * _at(right, rhs, "i") * _at(right, rhs, "o") * _at(left, lhs, "b") // groups[1]
    for axis in (char for char in lhs if char.isdigit()):
        sizes = _at(left, lhs, axis), _at(right, rhs, axis), _at(out, result, axis)
        flops *= _positions(*sizes, {name: values[int(axis)] for name, values in window.items()})
    return flops


def _at(array: Array, labels: str, label: str) -> int:
    return array.dims[labels.index(label)]


def _number(one: Instruction, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", one.attributes)
    return int(found[1]) if found else 1


def _window(one: Instruction) -> dict[str, list]:
    """Return the window's settings that are there, each a list over spatial dimensions."""
    found = re.search(r"window=\{([^}]*)\}", one.attributes)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}
    return {name: value.split("x") for name, value in parts.items()}


def _positions(base: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Return in how many pairs (place of the output, place of the kernel) the kernel meets an element of the base."""
    stride, base_step, kernel_step = (int(window.get(n, 1)) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    if base_step == kernel_step == stride == 1 and before == 0 and out + kernel - 1 <= base:
        return out * kernel
    last, count = (base - 1) * base_step, 0
    for place in range(kernel):  # o · stride = first + a multiple of the dilation, within the base
        offset = before - place * kernel_step
        count += sum(0 <= o * stride - offset <= last and (o * stride - offset) % base_step == 0 for o in range(out))
    return count
