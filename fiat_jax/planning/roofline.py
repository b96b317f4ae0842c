"""How fast a program could be: the slowest of computing, of main memory and of the network, each at its peak."""

import dataclasses

import numpy as np

from fiat_jax.planning.account import Account
from fiat_jax.planning.chips import Chip, bandwidth

FORMULA = (
    "seconds = max(operations / peak, bytes / memory bandwidth, for each set of links: bytes that leave a chip / "
    "their bandwidth, summed over collectives)"
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that one run takes at the least by each of the chip's peaks."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The longest of them: all three at once, none waiting for another."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """Which of them it is."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def roofline(account: Account, chip: Chip, devices: np.ndarray, axis_names: tuple[str, ...]) -> Roofline:
    """Return the roofline of a program on a mesh of such chips; see `FORMULA`."""
    network = sum(
        one.bytes / bandwidth(chip, devices, [axis_names.index(axis) for axis in one.axes])
        for one in account.collectives
        if one.axes
    )
    return Roofline(account.flops / chip.flops, account.bytes / chip.memory_bandwidth, network)
