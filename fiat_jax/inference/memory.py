"""Whether what an engine keeps fits a device: asked before anything is compiled."""

import math
from typing import Any

import jax.numpy as jnp

from fiat_jax.errors import UserError
from fiat_jax.models.attention import CACHE_AXES, PREFIX_AXES, Prefix
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model
from fiat_jax.sharding import axis_size


def check_memory(model: Model, slots: int, slot_length: int, prefix_length: int) -> None:
    """Refuse slots and prefixes that take more than a device has left.

    Raises:
        UserError: what they take, what there is, and what to lower.
    """
    free, needed = free_bytes(model.mesh.local_devices[0]), kept_bytes(model, slots, slot_length, prefix_length)
    if free is not None and needed > free:
        raise UserError(
            f"{slots} slots of {slot_length} tokens and a prefix of {prefix_length} take {needed / 2**30:.1f} GiB a "
            f"device, which has {free / 2**30:.1f} free: lower EngineConfig.slots or slot_length"
        )


def kept_bytes(model: Model, slots: int, slot_length: int, prefix_length: int) -> int:
    """Return how many bytes of keys and values lie on each device: all slots', one prefix's and the empty one's."""
    config = model.config
    if isinstance(config, DecoderConfig):
        values = (config.num_layers, slots, config.num_kv_heads, slot_length, config.head_dim)
        return 2 * _share(model, values, CACHE_AXES[1]) + 2 * prefix_bytes(model, prefix_length)
    values = (config.num_decoder_layers, slots, config.num_heads, slot_length, config.head_dim)
    return 4 * _share(model, values, CACHE_AXES[1])  # of what is read, and of what is written


def prefix_bytes(model: Model, prefix_length: int) -> int:
    """Return how many bytes of one prefix's keys and values lie on each device."""
    config = model.config
    if not isinstance(config, DecoderConfig):
        return 0
    values = (config.num_layers, config.num_kv_heads, Prefix.capacity(prefix_length), config.head_dim)
    return 2 * _share(model, values, PREFIX_AXES[1])


def _share(model: Model, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> int:
    """Return the bytes of an array that lie on one device; an axis that its mesh axes do not divide stays whole."""
    spec = model.build.rules.spec(axes)
    ways = [axis_size(model.mesh, mesh_axes) for mesh_axes in spec]
    parts = [size // way if size % way == 0 else size for size, way in zip(shape, ways, strict=True)]
    return math.prod(parts) * jnp.dtype(model.build.dtype).itemsize


def free_bytes(device: Any) -> int | None:
    """Return how many bytes a device, or the host of a CPU device, has left; None: it does not say."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
