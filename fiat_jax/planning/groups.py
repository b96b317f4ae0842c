"""Which devices a collective joins, and along which axes of the mesh they lie."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from fiat_jax.planning.hlo import Instruction

IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?([^)]*\)?)\)?)? \{([^}]*)\}")


def groups_of(one: Instruction, num_devices: int) -> list[list[int]]:
    """Return the groups of devices, by their place in the mesh, that exchange data with each other.

    Of a collective-permute those are the cycles and chains of its pairs. Without groups all devices are one.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", one.attributes)
    if pairs:
        return _joined([(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")])
    mesh = MESH.search(one.attributes)
    if mesh:
        return _by_axes(mesh[1], mesh[2], mesh[3])
    braces = re.search(r"replica_groups=\{(\{.*?\})\}", one.attributes)
    if braces:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", braces[1])]
    iota = re.search(r"replica_groups=(\[[^ ]*)", one.attributes)
    if iota and (found := IOTA.match(iota[1])):
        return _iota(found).tolist()
    return [list(range(num_devices))]


def _iota(found: re.Match) -> np.ndarray:
    """Return [a,b]<=[c,d]T(1,0): all numbers in the shape (c, d), turned, in the shape (a, b)."""
    shape, source = ([int(n) for n in found[i].split(",")] for i in (1, 2))
    order = [int(n) for n in found[3].split(",")] if found[3] else range(len(source))
    return np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape)


def _by_axes(axes: str, device_ids: str | None, along: str) -> list[list[int]]:
    """Return the groups of "mesh['a'=4,'b'=2] {'b'}": devices that differ in these axes alone.

    'a':(2)4 is a part of an axis: that of size 4 behind a major part of size 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids and (found := IOTA.search(device_ids)):
        ids = _iota(found)
    parts: dict[str, list[tuple[int, bool]]] = {name: [(size, False)] for name, size in sizes.items()}
    for name, major, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        major, size = int(major or 1), int(size or sizes[name])
        parts[name] = [(major, False), (size, True), (sizes[name] // major // size, False)]
    flat = [part for name in sizes for part in parts[name]]
    ids = ids.reshape([size for size, _ in flat])
    joined = [axis for axis, (_, inside) in enumerate(flat) if inside]
    others = [axis for axis in range(len(flat)) if axis not in joined]
    return ids.transpose(others + joined).reshape(-1, math.prod(flat[axis][0] for axis in joined)).tolist()


def _joined(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the devices that pairs join, directly or by way of others."""
    group: dict[int, set[int]] = {}
    for a, b in pairs:
        both = group.get(a, {a}) | group.get(b, {b})
        for device in both:
            group[device] = both
    return [sorted(one) for one in {id(one): one for one in group.values()}.values()]


def axes_of(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the devices of the groups differ."""
    longest = max(groups, key=len)
    places = np.array(np.unravel_index(np.array(longest), tuple(mesh_shape.values())))
    return tuple(name for name, along in zip(mesh_shape, places, strict=True) if len(set(along.tolist())) > 1)
