"""Floating-point operations of matrix products and convolutions, two for each multiplication that counts."""

import math
import re

from fiat_jax.planning.hlo import Array, Computation, Instruction

GEMM = re.compile(r"__(cublas|onednn|triton)[\w$]*(gemm|matmul)", re.IGNORECASE)
SPLASH = re.compile(r"/splash_m[hq]a_(fwd|dq|dkv)")  # in the op_name of its Pallas kernels
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of a pair of blocks: scores, their gradients, and sums by them


def product_flops(where: Computation, one: Instruction) -> int:
    """Return the operations of a dot, a convolution or a call of a library's product; 0 of all else."""
    if one.opcode == "dot":
        return _dot(where, one)
    if one.opcode == "convolution":
        return _convolution(where, one)
    if one.opcode == "custom-call" and GEMM.search(one.attributes):
        return _dot(where, one)
    if one.opcode == "custom-call" and (kernel := SPLASH.search(one.attributes)):
        return _splash(where, one, SPLASH_PRODUCTS[kernel[1]])
    return 0


def _dot(where: Computation, one: Instruction) -> int:
    left = where.operands(one)[0].arrays[0]
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)', one.attributes)
    contracted = [left.dims[int(axis)] for axis in re.findall(r"\d+", found[1])] if found else [left.dims[-1]]
    return 2 * one.arrays[0].size * math.prod(contracted)


def _splash(where: Computation, one: Instruction, products: int) -> int:
    """Return the operations of splash attention, whose masks say statically which pairs of blocks it passes over.

    Its first operands are a grid of blocks of queries and of keys, where it passes over any: square under a causal
    mask, of which it computes a triangle, and narrower under a window. Queries (B, N, T, K) and keys follow.
    """
    arrays = [operand.arrays[0] for operand in where.operands(one)]
    at = next(place for place, array in enumerate(arrays) if array.dtype[0] in "bf")
    queries, keys = arrays[at], arrays[at + 1]
    *batch, heads, T, width = queries.dims
    S, share = keys.dims[-2], 1.0
    if at:
        rows, columns = arrays[0].dims[-2:]
        most = max(rows, columns)
        pairs = most * (most + 1) / 2 if rows == columns else rows * columns
        share = pairs / most**2
    return int(2 * products * math.prod(batch) * heads * T * S * width * share)


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
