"""What chips can do at most, as their makers publish it, and which of it a group of them shares."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip.

    Args:
        flops: bfloat16 products, operations a second, dense.
        memory: bytes of its main memory that programs may take.
        memory_bandwidth: bytes a second.
        link: bytes a second that leave it over one link to a neighbour, one way; of a GPU over all of NVLink.
        torus: links lie in a torus; a dimension of so many chips, or of a multiple of it, is closed to a ring; 0: no
            torus, every chip reaches every other at `link`.
        network: bytes a second to chips of another slice or machine.
    """

    name: str
    flops: float
    memory: int
    memory_bandwidth: float
    link: float
    torus: int
    network: float
    source: str


TPU_DOCS = "https://cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"

# Keyed by JAX's `device_kind`. Memory of TPUs: what their compiler says that programs have ("Used 20G of 15.75G hbm").
# Links of TPUs: the published bandwidth of a chip over its links (4 or 6). Network: that of a pod over its chips, of
# v5p that of https://jax-ml.github.io/scaling-book/tpus, of GPUs one adapter each of DGX machines (200, 400 Gb/s).
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, int(15.75 * GIB), 819e9, 1600e9 / 8 / 4, 16, 6.4e12 / 8 / 256, TPU_DOCS + "v5e"),
    "TPU v5": Chip("v5p", 459e12, int(95.73 * GIB), 2765e9, 4800e9 / 8 / 6, 4, 6.25e9, TPU_DOCS + "v5p"),
    "TPU v6 lite": Chip(
        "v6e", 918e12, int(31.24 * GIB), 1600e9, 3200e9 / 8 / 4, 16, 25.6e12 / 8 / 256, TPU_DOCS + "v6e"
    ),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 80 * 10**9, 2039e9, 300e9, 0, 25e9, NVIDIA + "a100/"),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 * 10**9, 3350e9, 450e9, 0, 50e9, NVIDIA + "h100/"),
    "NVIDIA H200": Chip("H200", 989e12, 141 * 10**9, 4800e9, 450e9, 0, 50e9, NVIDIA + "h200/"),
}


def bandwidth(chip: Chip, devices: np.ndarray, along: Sequence[int]) -> float:
    """Return the bytes a second that leave each chip when those that differ along these axes of a mesh exchange data.

    Args:
        devices: the mesh's devices.
        along: the axes of the array.

    On a torus all links of those dimensions count along which the chips of a group differ: two for each chip where a
    dimension is closed to a ring, one where it is a line, whose ends have no second one.
    """
    group = np.moveaxis(devices, list(along), range(len(along)))
    group = group.reshape(-1, *group.shape[len(along) :])[(slice(None), *[0] * (devices.ndim - len(along)))]
    if len({_slice(device) for device in group}) > 1:
        return chip.network
    if not chip.torus:
        return chip.link
    places, extent = np.array([device.coords for device in group]), _extent(devices)
    links = 0
    for dim in range(places.shape[1]):
        spread = len(set(places[:, dim].tolist()))
        if spread > 1:
            links += 2 if spread == extent[dim] and spread % chip.torus == 0 else 1
    return links * chip.link


def _slice(device: Any) -> Any:
    """Return of which slice of a TPU, or of which machine of GPUs, a device is."""
    index = getattr(device, "slice_index", None)
    return device.process_index if index is None and device.platform == "gpu" else index


def _extent(devices: np.ndarray) -> list[int]:
    coords = np.array([device.coords for device in devices.flat])
    return [len(set(column.tolist())) for column in coords.T]
