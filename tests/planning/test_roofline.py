"""Links that a group of chips shares, and the time that follows."""

import dataclasses
import itertools

import numpy as np
import pytest

from fiat_jax.planning.account import Account, Collective
from fiat_jax.planning.chips import CHIPS, bandwidth
from fiat_jax.planning.roofline import roofline

V5E, V5P, H200 = CHIPS["TPU v5 lite"], CHIPS["TPU v5"], CHIPS["NVIDIA H200"]
AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Device:
    """What is asked of a device."""

    coords: tuple[int, ...]
    slice_index: int | None = None
    platform: str = "tpu"
    process_index: int = 0


def torus(*sizes: int, slices: int = 1) -> list[Device]:
    places = list(itertools.product(*(range(size) for size in sizes)))
    return [Device(place, index if slices > 1 else None) for index in range(slices) for place in places]


def mesh(devices: list[Device], *sizes: int) -> np.ndarray:
    found = np.empty(len(devices), object)
    found[:] = devices
    return found.reshape(sizes)


@pytest.mark.parametrize(
    ("chip", "devices", "sizes", "along", "links"),
    [
        (V5E, torus(4, 4), (1, 16, 1), [1], 2),  # two lines
        (V5E, torus(4, 4), (1, 4, 4), [1], 1),
        (V5E, torus(16, 16), (16, 16, 1), [1], 2),  # a ring
        (V5E, torus(16, 16), (16, 16, 1), [0, 1], 4),
        (V5P, torus(4, 4, 4), (4, 16, 1), [1], 4),  # two rings of 4
        (V5P, torus(4, 4, 4), (4, 16, 1), [0], 2),
        (V5P, torus(2, 2, 1), (1, 4, 1), [1], 2),
    ],
)
def test_every_dimension_that_a_group_spans_has_its_links(chip, devices, sizes, along, links):
    assert bandwidth(chip, mesh(devices, *sizes), along) == links * chip.link


def test_between_slices_and_machines_it_is_the_slow_network_that_counts():
    two = mesh(torus(4, 4, slices=2), 2, 16, 1)
    assert bandwidth(V5E, two, [0]) == V5E.network
    assert bandwidth(V5E, two, [1]) == 2 * V5E.link
    gpus = [Device((), None, "gpu", process) for process in (0, 0, 1, 1)]
    assert bandwidth(H200, mesh(gpus, 2, 2, 1), [0]) == H200.network
    assert bandwidth(H200, mesh(gpus, 2, 2, 1), [1]) == H200.link


def test_time_is_the_longest_of_computing_memory_and_network():
    exchanged = Collective("all-gather", ("fsdp",), "bf16[8]", 1, 50e9, 8, "")
    found = roofline(Account(197e12, 2 * 819e9, (exchanged,), {}, (), ()), V5E, mesh(torus(4, 4), 1, 16, 1), AXES)
    assert (found.compute, found.memory, found.network) == pytest.approx((1.0, 2.0, 0.5))
    assert (found.seconds, found.bound) == (2.0, "memory")
