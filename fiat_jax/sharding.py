"""Meshes, and the one table that says on which mesh axis each logical axis of an array lies."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fiat_jax.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "expert", "tensor")
AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis → mesh axis, several mesh axes, or None (replicated). Another table is another layout of a model."""

    batch: MeshAxes = ("data", "fsdp", "expert")
    layers: MeshAxes = None
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = ("fsdp", "expert")
    kv_heads: MeshAxes = "tensor"
    queries: MeshAxes = None
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    fused: MeshAxes = None
    experts: MeshAxes = "expert"
    expert_embed: MeshAxes = "fsdp"  # of experts' weights, which lie on the axis `expert` already
    rank: MeshAxes = None
    norm: MeshAxes = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Return the PartitionSpec of an array whose dimensions have these logical axes."""
        for axis in axes:
            if axis is not None and axis not in self.__dataclass_fields__:
                known = list(self.__dataclass_fields__)
                raise UserError(
                    f"expected a logical axis among {', '.join(known)}; got {axis!r}.{did_you_mean(axis, known)}"
                )
        return PartitionSpec(*(None if axis is None else getattr(self, axis) for axis in axes))


TRAIN = ShardingRules()

# Every step of decoding reads all weights for few tokens, so none is gathered: where TRAIN splits the width, this
# splits what a device computes by itself. Keys and values of a head lie wherever its queries do.
DECODE = ShardingRules(
    batch="data",
    vocab=("fsdp", "expert", "tensor"),
    embed=None,
    queries=("fsdp", "expert"),
    mlp=("fsdp", "tensor"),
    expert_embed=None,
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: what the devices leave.

    Args:
        slices: how many slices (of a TPU), or groups of hosts, the devices are of, between which the network is slow.
            The axis `data` lies across them, the others within: only gradients of what is trained cross it.
        expert: ways in which the experts of a mixture are divided, and all that `fsdp` divides.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1
    expert: int = 1

    def shape(self, num_devices: int) -> tuple[int, int, int, int]:
        """Return the sizes of the axes over so many devices; UserError where they do not fit."""
        sizes = [self.data, self.fsdp, self.expert, self.tensor]
        rest = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) == 1 and rest > 0 and num_devices % rest == 0:
            sizes[sizes.index(-1)] = num_devices // rest
        if any(size < 1 for size in sizes) or math.prod(sizes) != num_devices:
            named = f"data={self.data} fsdp={self.fsdp}" + (f" expert={self.expert}" if self.expert != 1 else "")
            raise UserError(
                f"mesh {named} tensor={self.tensor} does not fit {num_devices} devices: "
                f"the product must be {num_devices}, and one size may be -1"
            )
        if self.slices < 1 or sizes[0] % self.slices:
            raise UserError(f"mesh data={sizes[0]} is not divided by slices={self.slices}: data lies across the slices")
        return sizes[0], sizes[1], sizes[2], sizes[3]

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Return the mesh over `devices` (all of them by default)."""
        devices = list(jax.devices() if devices is None else devices)
        data, *others = self.shape(len(devices))
        within = (data // self.slices, *others)
        split = {"allow_split_physical_axes": True}  # 8 of a slice of 4 x 4
        placed = [mesh_utils.create_device_mesh(within, group, **split) for group in _groups(devices, self.slices)]
        return Mesh(np.concatenate(placed), MESH_AXES, axis_types=AXIS_TYPES)

    def abstract(self, num_devices: int) -> AbstractMesh:
        """Return the mesh without devices: enough to say how arrays would lie."""
        return AbstractMesh(self.shape(num_devices), MESH_AXES, axis_types=AXIS_TYPES)


def _groups(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    """Return the devices of each slice: by what they say themselves, else equal parts of them in order."""
    indices = sorted({getattr(device, "slice_index", 0) for device in devices})
    if len(indices) == slices > 1:
        return [[device for device in devices if device.slice_index == index] for index in indices]
    if len(indices) > 1 and slices > 1:
        raise UserError(f"the devices are of {len(indices)} slices: Mesh.slices must be that, or 1; it is {slices}")
    size = len(devices) // slices
    return [list(devices[start : start + size]) for start in range(0, len(devices), size)]


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """Return the mesh axes among which a dimension is divided, none, one or several."""
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def axis_size(mesh: Mesh | AbstractMesh, axes: MeshAxes) -> int:
    """Return over how many devices an array dimension is split by `axes`."""
    return math.prod(mesh.shape[name] for name in axis_names(axes))


def check_batch(mesh: Mesh, rules: ShardingRules, batch_rows: int, accumulate: int = 1) -> None:
    """Refuse a batch that the mesh does not divide."""
    ways = axis_size(mesh, rules.batch)
    if batch_rows % (ways * accumulate):
        raise UserError(
            f"a batch of {batch_rows} rows in {accumulate} accumulation steps is not divided by the mesh, which splits "
            f"rows {ways} ways (mesh {dict(mesh.shape)}): use a multiple of {ways * accumulate} rows, or another mesh"
        )


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Return how the arrays of a batch lie: their rows over the devices."""
    return NamedSharding(mesh, PartitionSpec(rules.batch))


def divided(mesh: Mesh, rules: ShardingRules, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return a batch, of which every process has the whole, by its rows over the devices.

    Which rows a process needs follows from where its devices lie in the mesh: on a TPU slice not in the order of
    processes, and with devices of two of them on one tensor axis both need the same.
    """
    rows = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_callback(x.shape, rows, x.__getitem__) for name, x in batch.items()}


def named(mesh: Mesh, rules: ShardingRules, shape: Sequence[int], axes: Sequence[str | None]) -> NamedSharding:
    """Return an array's sharding; a dimension that its mesh axes do not divide stays whole, and the log says so."""
    spec = list(rules.spec(axes))
    for dim, mesh_axes in enumerate(spec):
        if shape[dim] % axis_size(mesh, mesh_axes):
            log.warning(
                "axis %r of size %d is not divided by mesh axis %r: it stays whole", axes[dim], shape[dim], mesh_axes
            )
            spec[dim] = None
    return NamedSharding(mesh, PartitionSpec(*spec))


def constrain(x: jax.Array, rules: ShardingRules, *axes: str | None) -> jax.Array:
    """Pin an activation's layout to the mesh in context (`jax.set_mesh`); without a mesh, return it as it is.

    As in `named`, a dimension that its mesh axes do not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(mesh, rules, x.shape, axes))


def fitting(
    mesh: Mesh | AbstractMesh, rules: ShardingRules, shape: Sequence[int], axes: Sequence[str | None]
) -> PartitionSpec:
    """Return how an array of this shape lies; a dimension that its mesh axes do not divide stays whole."""
    spec = rules.spec(axes)
    fits = (size % axis_size(mesh, mesh_axes) == 0 for size, mesh_axes in zip(shape, spec, strict=True))
    return PartitionSpec(*(mesh_axes if fit else None for mesh_axes, fit in zip(spec, fits, strict=True)))
