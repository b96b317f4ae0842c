"""The machine that is planned for: a TPU slice that need not be there, or the devices of this process."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.inference.memory import free_bytes
from fiat_jax.planning.chips import CHIPS, Chip
from fiat_jax.sharding import MeshConfig

INSTALL = "pip install 'fiat-jax[plan]'"
# what has to be in the environment before JAX starts, so that libtpu compiles on a machine without a TPU
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",  # it misses the metadata of a real machine, and says so
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices, what they can do, and how many bytes of memory each has for programs; None where that is not known."""

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    memory: int | None

    @property
    def kind(self) -> str:
        """What JAX calls these devices."""
        return self.devices[0].device_kind

    def mesh(self, config: MeshConfig) -> jax.sharding.Mesh:
        """Return the mesh over the devices."""
        return config.build(self.devices)


def slice_of(topology: str, slices: int = 1) -> Target:
    """Return the chips of a TPU slice, say "v5e:4x4", or of several alike.

    Raises:
        UserError: there is no libtpu to compile with, or it knows no such slice.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(f"planning for a TPU needs its compiler, libtpu: {INSTALL}")
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        known = [chip.name for chip in CHIPS.values() if chip.torus]
        name = topology.partition(":")[0]
        raise UserError(
            f"--topology={topology} is no slice that libtpu knows: NAME:SHAPE, as in v5e:4x4, v6e:16x16 or v5p:4x4x4; "
            f"names are {', '.join(known)}.{did_you_mean(name, known)} It says: {str(error).partition(chr(10))[0]}"
        ) from error
    devices = found.devices
    chip = CHIPS.get(devices[0].device_kind)
    name = topology if slices == 1 else f"{slices} x {topology}"
    return Target(name, devices, chip, None if chip is None else chip.memory)


def local() -> Target:
    """Return the devices of this process, with the memory that each has free now."""
    devices = jax.devices()
    free = free_bytes(jax.local_devices()[0])
    if free is not None and devices[0].platform == "cpu":
        free //= len(devices)  # they share the host's
    return Target(f"{len(devices)} local {devices[0].device_kind}", devices, CHIPS.get(devices[0].device_kind), free)


def shape_of(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Return the sizes of a mesh's axes by name, in order."""
    return dict(zip(mesh.axis_names, np.shape(mesh.devices), strict=True))
