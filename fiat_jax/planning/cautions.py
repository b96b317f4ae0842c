"""What of a plan deserves a second look: copies, gathered vocabularies, padding, plain kernels."""

import math
import re
from typing import Any

import jax

from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model
from fiat_jax.planning.account import Account
from fiat_jax.planning.hlo import HBM, Module, walk
from fiat_jax.sharding import axis_names

LARGE = 64 << 20  # bytes of an array on a device
WASTE = 1.25  # bytes with tiles filled up, against those without
MORE = 1.2  # bytes moved, against what theory asks
SOME = 0.1  # of all weights: what crosses fsdp in decoding is some of them, and not activations
KERNELS = {
    "tpu_custom_call": "a Pallas kernel",
    "__cudnn$fmha": "cuDNN flash attention",
    "triton": "a Triton kernel",
}
GIB = 2**30


def of_arguments(trees: Any) -> list[str]:
    """Return what is said of large arrays that every device holds whole."""
    found = []
    for path, array in jax.tree_util.tree_flatten_with_path(trees)[0]:
        size = math.prod(array.shape) * array.dtype.itemsize
        if size >= LARGE and array.sharding.num_devices > 1 and array.sharding.is_fully_replicated:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found.append((size, f"{name} {array.dtype.name}{list(array.shape)}"))
    found.sort(reverse=True)
    if not found:
        return []
    names = ", ".join(name for _, name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return [f"{sum(size for size, _ in found) / GIB:.2f} GiB a device are arrays that each device holds whole: {names}"]


def of_layout(model: Model) -> list[str]:
    """Return which dimensions lie whole because the mesh does not divide them."""
    found = []
    for state in (model.trainable, model.frozen):
        for variable in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "axes")):
            value = variable.get_value()
            wanted = model.build.rules.spec(variable.axes)
            for axis, size, asked, given in zip(variable.axes, value.shape, wanted, value.sharding.spec, strict=False):
                ways = 1 if asked is None else math.prod(model.mesh.shape[n] for n in axis_names(asked))
                if given is None and ways > 1:
                    found.append(f"{axis} of size {size} is not divided by {asked!r} ({ways} ways) and stays whole")
    return list(dict.fromkeys(found))


def of_vocabulary(account: Account, vocab_size: int) -> list[str]:
    """Return how often the matrix of the vocabulary is put together from its parts."""
    found = []
    for one in account.collectives:
        dims = [int(n) for n in re.findall(r"\d+", one.array.partition("[")[2])]
        if one.kind == "all-gather" and one.count > 1 and one.bytes >= LARGE and vocab_size in dims:
            found.append(
                f"the vocabulary is gathered {one.count:.0f} times: {one.array} along {'/'.join(one.axes)}, "
                f"{one.bytes / GIB:.1f} GiB a device"
            )
    return found


def of_weights(account: Account, model: Model, passes: int) -> list[str]:
    """Return whether weights cross the axis `fsdp` more often than `passes` times, which is what theory asks.

    0 passes: it asks that they stay where they are, as in decoding, where each token would gather them anew.
    """
    moved, asked = weights_moved(account, model, passes)
    _, once = weights_moved(account, model, 1)
    if passes == 0 and moved >= max(LARGE, SOME * once):
        return [
            f"{moved / GIB:.2f} GiB a device cross fsdp for every token: weights that lie along it are gathered anew "
            "in each step; let them lie along tensor, or whole, where they fit"
        ]
    if not asked or moved <= MORE * asked:
        return []
    return [
        f"{moved / GIB:.1f} GiB a device cross fsdp, {moved / asked:.2f} times the {asked / GIB:.1f} of gathering all "
        f"weights {passes} times"
    ]


def weights_moved(account: Account, model: Model, passes: int) -> tuple[float, float]:
    """Return the bytes that leave a device along `fsdp`, but for sums, and those of gathering all weights so often."""
    ways = model.mesh.shape["fsdp"]
    moved = sum(one.bytes for one in account.collectives if "fsdp" in one.axes and one.kind != "all-reduce")
    return moved, passes * gathered_bytes(model) * (ways - 1) / ways


def gathered_bytes(model: Model) -> float:
    """Return the bytes of all weights that one device sees in a pass, gathered along `fsdp`."""
    total = 0.0
    for array in jax.tree.leaves(model.frozen):
        split = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        parts = [axis_names(part) for part in array.sharding.spec if part is not None]
        total += split * sum(math.prod(model.mesh.shape[name] for name in part) for part in parts if "fsdp" in part)
    return total


def of_padding(module: Module) -> list[str]:
    """Return which arguments are filled up to whole tiles at a cost."""
    wasted, names = 0, []
    for one in module.entry.parameters.values():
        for array in one.arrays:
            if array.bytes and array.padded_bytes > WASTE * array.bytes:
                wasted += array.padded_bytes - array.bytes
                names.append((array.padded_bytes - array.bytes, f"{array.dtype}{list(array.dims)}"))
    if wasted < LARGE:
        return []
    worst = ", ".join(dict.fromkeys(name for _, name in sorted(names, reverse=True)[:3]))
    return [f"{wasted / GIB:.2f} GiB a device are padding of arguments to whole tiles: {worst}"]


def of_copies(module: Module) -> list[str]:
    """Return which large arrays are copied in main memory, say into another layout."""
    found: dict[str, list[int]] = {}
    for _, one in walk(module):
        array = one.arrays[0] if one.opcode == "copy" and one.arrays else None
        if array is not None and array.bytes >= LARGE and array.memory_space == HBM:
            found.setdefault(f"{array.dtype}{list(array.dims)}", []).append(array.bytes)
    if not found:
        return []
    largest = sorted(found, key=lambda name: -sum(found[name]))
    names = ", ".join(largest[:3]) + (f" and {len(largest) - 3} more" if len(largest) > 3 else "")
    total = sum(sum(sizes) for sizes in found.values())
    return [f"{total / GIB:.2f} GiB a device are copied within its memory, once or in each trip of a loop: {names}"]


def kernels(module: Module) -> list[str]:
    """Return which kernels besides XLA's own a program calls."""
    targets = {
        target
        for computation in module.computations.values()
        for one in computation.instructions
        if one.opcode == "custom-call"
        for target in re.findall(r'custom_call_target="([^"]*)"', one.attributes)
    }
    return sorted({name for key, name in KERNELS.items() if any(key in target for target in targets)})


def of_kernels(module: Module, model: Model) -> list[str]:
    """Return whether attention is left to plain products, whose scores go through main memory."""
    if kernels(module) or not isinstance(model.config, DecoderConfig):
        return []
    why = f" ({model.build.kernel.reason})" if model.build.kernel.reason else ""
    return [f"attention is plain products by XLA{why}: its scores are written to memory and read again"]
