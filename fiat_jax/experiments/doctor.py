"""`fiat doctor`: what a run needs of its machines, tried in all of its processes before it begins.

Every process makes every check, and learns what the others found without a device taking part. So whose devices or
files are broken is named by all of them, and all end with the same status.
"""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from fiat_jax.distributed import SHARED_AFTER, place, told_by_all
from fiat_jax.errors import UserError
from fiat_jax.experiments import runtime
from fiat_jax.remote import is_remote, open_store
from fiat_jax.training.watch import Watch

OF_DEVICES = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
STUCK = 120.0  # seconds after which a collective counts as one that never ends
ANSWER = 300.0  # seconds that a check may take in one process while the others wait
BYTES = {"cpu": 1 << 20}  # of one all-reduce; on an accelerator:
MANY_BYTES = 1 << 26
REPEATS = 5
NAMES_SHOWN = 8


def examine(storages: Sequence[str], num_devices: int | None, console: Console) -> None:
    """Join the run's other processes and print what is found, one line a check.

    Args:
        storages: directories or URLs that all processes of a run write and read.
        num_devices: how many devices there are to be, over all processes; None for any number.

    Raises:
        UserError: what is wrong, by the processes that find it so.
    """
    runtime.start()
    console.quiet = place()[0] != 0

    def say(check: str, text: str) -> None:
        console.print(f"{check:<12} {text}", highlight=False, markup=False)

    hosts = told_by_all("host", socket.gethostname())
    say("processes", f"{len(hosts)} on {_few(hosts)}")
    with Watch("doctor", stuck=STUCK) as watch:
        versions = _all("versions", _versions, hosts)
        _require_same("versions", versions, hosts)
        say("versions", ", ".join(f"{name} {number}" for name, number in versions[0].items()))
        say("devices", _told(_all("devices", _devices, hosts), hosts, num_devices))
        watch.reached(0)  # from here on who hangs is named
        say("collectives", _all("collectives", _collectives, hosts)[0])
        watch.rest()
        for number, storage in enumerate(storages, 1):
            say("storage", f"{storage}: {_storage(storage, f'storage {number}', hosts)}")
    say("", "nothing is wrong")


def _all(topic: str, check: Callable[[], Any], hosts: Sequence[str]) -> list[Any]:
    """Return what a check finds in each process; UserError in all of them where it fails in any."""
    try:
        mine = {"found": check()}
    except Exception as error:  # whatever is wrong with a machine is what is asked for
        mine = {"wrong": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"}
    told = [json.loads(word) for word in told_by_all(topic, json.dumps(mine), ANSWER)]
    wrong: dict[str, list[str]] = {}
    for process, (one, host) in enumerate(zip(told, hosts, strict=True)):
        if "wrong" in one:
            wrong.setdefault(one["wrong"], []).append(f"process {process} on {host}")
    if wrong:
        raise UserError("; ".join(f"{topic}: {_few(who)}: {what}" for what, who in wrong.items()))
    return [one["found"] for one in told]


def _few(names: Sequence[str]) -> str:
    counted = Counter(names)
    shown = [f"{name} × {many}" if many > 1 else name for name, many in list(counted.items())[:NAMES_SHOWN]]
    return ", ".join(shown) + (f" and {len(counted) - len(shown)} more" if len(counted) > len(shown) else "")


def _require_same(topic: str, found: Sequence[Any], hosts: Sequence[str]) -> None:
    for process, one in enumerate(found):
        differ = sorted(name for name in {**found[0], **one} if found[0].get(name) != one.get(name))
        if differ:
            sides = "; ".join(f"{name} {found[0].get(name)} and {one.get(name)}" for name in differ)
            raise UserError(
                f"{topic}: process 0 on {hosts[0]} and process {process} on {hosts[process]} differ in {sides}; "
                "make them the same on all hosts"
            )


def _versions() -> dict[str, str]:
    found = runtime.versions()
    for name in OF_DEVICES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, Any]:
    local = jax.local_devices()
    chosen = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if local[0].platform == "cpu" and not chosen:
        _refuse_idle(_accelerator())
    stats = local[0].memory_stats() or {}
    return {
        "kind": f"{local[0].platform} {local[0].device_kind}",
        "count": len(local),
        "memory": stats.get("bytes_limit", 0),
        "machine": len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if local[0].platform == "gpu" else 0,
        "all": jax.device_count(),
    }


def _refuse_idle(extra: str) -> None:
    if extra:
        raise UserError(
            f"this machine has a {extra.upper()} and JAX sees none; pip install -c requirements.lock -e '.[{extra}]', "
            "and look at what JAX says when it starts"
        )


def _accelerator() -> str:
    """Return the extra for the accelerator of this machine, "" where it has none."""
    from jax._src import hardware_utils  # what JAX itself looks for

    if hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        return "tpu"
    return "gpu" if hardware_utils.has_visible_nvidia_gpu() else ""


def _told(found: Sequence[dict[str, Any]], hosts: Sequence[str], wanted: int | None) -> str:
    """Return the devices in words; UserError where processes have different ones or there are not as many as wanted."""
    _require_same("devices", [{name: one[name] for name in ("kind", "count", "all")} for one in found], hosts)
    first, count = found[0], sum(one["count"] for one in found)
    if first["all"] != count:
        raise UserError(f"devices: {count} in {len(found)} processes, but JAX joined {first['all']}; start all again")
    if wanted is not None and count != wanted:
        by_process = f"{first['count']} in each of {len(found)} processes"
        raise UserError(f"devices: there are {count} ({by_process}), not {wanted}; look for hosts that are missing")
    text = f"{count} of {first['kind']}, {first['count']} in each process"
    if first["memory"]:
        text += f", {first['memory'] / 2**30:.1f} GiB each"
    used: Counter[str] = Counter()
    for one, host in zip(found, hosts, strict=True):
        used[host] += one["count"]
    idle = {host: one["machine"] - used[host] for one, host in zip(found, hosts, strict=True)}
    if named := [f"{host} ({many})" for host, many in idle.items() if many > 0]:
        text += f". GPUs that no process uses: {_few(named)}"
    return text


def _collectives() -> str:
    """Reduce, gather and pass on known values over all devices; return how fast, by the convention of nccl-tests."""
    devices = np.array(jax.devices())
    count, platform = len(devices), devices[0].platform
    if count == 1:
        return "none: there is one device"
    size = BYTES.get(platform, MANY_BYTES)
    mesh = Mesh(devices, ("all",))
    split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    numbers = np.arange(1, count + 1, dtype=np.float32)
    own = jax.make_array_from_callback((count, 1), split, lambda index: numbers[:, None][index or ...])
    reduce = jax.jit(lambda x: jnp.sum(x, 0), out_shardings=whole)
    reduced = reduce(wide := jax.jit(lambda x: jnp.tile(x, (1, size // 4)), out_shardings=split)(own))
    gathered = jax.jit(lambda x: x[:, 0], out_shardings=whole)(own)
    passed = jax.jit(lambda x: jnp.roll(x, 1, 0), out_shardings=split)(own)
    for what, array, wanted in (
        ("all-reduce", reduced, np.full(size // 4, numbers.sum())),
        ("all-gather", gathered, numbers),
        ("send and receive", passed, np.roll(numbers, 1)[:, None]),
    ):
        for shard in array.addressable_shards:
            if not np.array_equal(np.asarray(shard.data), wanted[shard.index]):
                raise UserError(f"{what} gives wrong values on {shard.device}; the network or a device is broken")
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        reduce(wide).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    bus = 2 * (count - 1) / count * size / min(seconds)
    return (
        f"all-reduce, all-gather, send and receive are right over {count} devices; an all-reduce of {size >> 20} MiB "
        f"takes {min(seconds) * 1e3:.2f} ms (bus bandwidth {bus / 1e9:.2f} GB/s)"
    )


def _storage(storage: str, topic: str, hosts: Sequence[str]) -> str:
    """Let each process write a file that all then read."""
    sign, mine = told_by_all(topic, uuid.uuid4().hex)[0], place()[0]
    path = f"{storage.rstrip('/')}/.fiat-doctor-{sign}-"
    try:
        _all(f"{topic}, writing", lambda: _write(f"{path}{mine}", sign), hosts)
        _all(f"{topic}, reading", lambda: _read_all(storage, path, sign, hosts), hosts)
    finally:
        _remove(f"{path}{mine}")
    free = "" if is_remote(storage) else f", {shutil.disk_usage(storage).free / 2**30:,.1f} GiB free"
    return f"what each process writes all read{free}"


def _write(path: str, text: str) -> None:
    """Write a file as runs do: whole under another name, then renamed."""
    if is_remote(path):
        files, name = open_store(path)
        files.pipe_file(name, text.encode())
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.part", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.part", path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; correct the path or its rights") from None


def _read_all(storage: str, path: str, text: str, hosts: Sequence[str]) -> None:
    until, missing = time.monotonic() + SHARED_AFTER, set(range(len(hosts)))
    while missing and time.monotonic() < until:
        missing -= {process for process in missing if _read(f"{path}{process}") == text}
        if missing:
            time.sleep(0.2)
    if missing:
        whose = _few([f"process {process} on {hosts[process]}" for process in sorted(missing)])
        raise UserError(f"{storage} does not show what {whose} writes in it; give one that all hosts share")


def _read(path: str) -> str | None:
    try:
        if is_remote(path):
            files, name = open_store(path)
            files.invalidate_cache()
            return files.cat_file(name).decode()
        return Path(path).read_text()
    except FileNotFoundError:
        return None


def _remove(path: str) -> None:
    with contextlib.suppress(Exception):  # where it could not be written it is not there, and stores raise anything
        if is_remote(path):
            files, name = open_store(path)
            files.rm_file(name)
        else:
            Path(path).unlink()
