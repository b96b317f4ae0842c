"""Hugging Face directories: safetensors read once, some rows at a time, into sharded arrays; and written back."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fiat_jax.errors import UserError
from fiat_jax.models.config import Config
from fiat_jax.models.families import family_of
from fiat_jax.models.tensors import Family, Tensor, groups
from fiat_jax.remote import fetched

# as safetensors names them → NumPy
FILE_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
READERS = min(8, os.cpu_count() or 1)
CHUNK_BYTES = 8 << 20  # of a tensor are read and transposed at a time: a core's cache holds them
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
    *("chat_template.jinja", "chat_template.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
)
ALIGNMENT = 64  # bytes
HEAD = "lm_head.weight"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30


def read_config(directory: str | Path) -> dict[str, Any]:
    """Return a directory's config.json."""
    path = fetched(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} has no config.json; it must be a model directory in Hugging Face layout")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file that a checkpoint came with."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; fetch it again")
    return content


class WeightFiles:
    """The safetensors files of a directory: which tensors there are, and any slice of one."""

    def __init__(self, directory: str | Path):
        self.directory = fetched(directory)
        self._views: dict[str, np.ndarray] = {}
        self._dtypes: dict[str, str] = {}
        self._files: dict[str, tuple[Path, int]] = {}
        self._scratch = threading.local()
        for path in self._paths():
            self._map(path)

    def _map(self, path: Path) -> None:
        """Map a file's tensors into memory: what is read of them is copied once, to where it goes."""
        from safetensors import SafetensorError, safe_open  # only a machine that reads checkpoints needs it

        try:
            with safe_open(path, framework="numpy"):  # checks header, sizes and offsets
                pass
        except FileNotFoundError:
            raise UserError(f"{path} is named by {INDEX} and is not there; fetch it again") from None
        except SafetensorError as error:
            size = path.stat().st_size
            raise UserError(f"{path} ({size} bytes) is cut short or damaged: {error}; fetch it again") from None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        bytes_ = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in FILE_DTYPES:
                raise UserError(
                    f"{path} holds {name} in {entry['dtype']}, a quantised or unusual type; we read "
                    f"{', '.join(FILE_DTYPES)}: give the unquantised checkpoint"
                )
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            self._dtypes[name], self._files[name] = entry["dtype"], (path, start)
            self._views[name] = bytes_[start:stop].view(FILE_DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def _paths(self) -> list[Path]:
        index = self.directory / INDEX
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index} does not say which file holds which tensor (weight_map); fetch it again")
            return [self.directory / name for name in sorted(set(weight_map.values()))]
        paths = sorted(self.directory.glob("*.safetensors"))
        if not paths:
            raise UserError(f"{self.directory} has no .safetensors file; convert the checkpoint to safetensors first")
        return paths

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor."""
        return {name: view.shape for name, view in self._views.items()}

    def alias(self, name: str, other: str) -> None:
        """Where `name` is absent and `other` is there, read it as `name`: a file may keep either of two tied ones."""
        if name not in self._views and other in self._views:
            self._views[name], self._dtypes[name] = self._views.pop(other), self._dtypes.pop(other)
            self._files[name] = self._files.pop(other)

    def view(self, name: str) -> np.ndarray:
        """Return a tensor as it lies in its file, not yet read, in the file's dtype."""
        return self._views[name]

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are one, by some of their rows."""
        one, two = self._views[name], self._views[other]
        rows = np.unique(np.linspace(0, len(one) - 1, min(256, len(one))).astype(int))
        return one.shape == two.shape and np.array_equal(one[rows], two[rows])

    def mapped(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return elements of a tensor as they lie in its file, flat, not yet read."""
        return self._views[name].reshape(-1)[start:stop]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return elements of a tensor, flat, in memory that this thread's next reading takes again."""
        dtype, (path, offset) = self._views[name].dtype, self._files[name]
        length = (stop - start) * dtype.itemsize
        if len(getattr(self._scratch, "bytes", b"")) < length:
            self._scratch.bytes = bytearray(length)
        with path.open("rb", buffering=0) as file:
            file.seek(offset + start * dtype.itemsize)
            held = memoryview(self._scratch.bytes)[:length]
            while held:
                count = file.readinto(held)
                if not count:
                    raise UserError(f"{path} has become shorter while it was read; fetch it again")
                held = held[count:]
        return np.frombuffer(self._scratch.bytes, dtype, stop - start)

    def fingerprint(self) -> str:
        """Return sha256 of names, shapes, dtypes and values spread over each tensor: seconds for any size."""
        digest = hashlib.sha256()
        for name in sorted(self._views):
            part = self._views[name]
            shape = list(part.shape)
            digest.update(json.dumps([name, shape, self._dtypes[name]]).encode())
            rows = np.unique(np.linspace(0, shape[0] - 1, min(8, shape[0])).astype(int)) if shape else []
            for row in rows:
                values = np.ascontiguousarray(part[int(row) : int(row) + 1]).reshape(-1)
                digest.update(values[:: max(1, values.size // 64)].tobytes())
        return digest.hexdigest()


def copy_into(out: np.ndarray, view: np.ndarray) -> None:
    """Copy a view of a file, whose dimensions may lie in another order; JAX transposes six times as fast as NumPy."""
    if view.ndim > 1 and view.strides[-1] > view.itemsize and (host := _host()):
        view = np.asarray(jax.device_put(view, host))
    out[...] = view


@functools.cache
def _host() -> Any:
    """Return the host as a device of JAX's, which is there unless JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face directory whose config.json and tensors go together; no tensor has been read."""

    hf_config: Mapping[str, Any]
    family: Family
    config: Config
    files: WeightFiles


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Compare a directory's tensors with what its config.json promises.

    Raises:
        UserError: an architecture or option that we do not read, or all that is missing, extra or misshapen.
    """
    hf_config, where = read_config(directory), f"{directory}/config.json"
    family = family_of(hf_config, where)
    config, files = family.read_config(hf_config, where), WeightFiles(directory)
    if family.head_by_files:
        tied = HEAD not in files.shapes or (family.table in files.shapes and files.equal(family.table, HEAD))
        config = dataclasses.replace(config, tied_head=tied)
    copies = (*family.copies, *([HEAD] if config.tied_head else []))
    for copy in copies:
        files.alias(family.table, copy)
        if {copy, family.table} <= files.shapes.keys() and not files.equal(family.table, copy):
            raise UserError(
                f"{where} ties {copy} to {family.table}, and the files hold two that differ; set its "
                "tie_word_embeddings to false, or fetch the checkpoint again"
            )
    _check_tensors(files, family, config, copies)
    return Checkpoint(hf_config, family, config, files)


def _check_tensors(files: WeightFiles, family: Family, config: Config, copies: Sequence[str]) -> None:
    """Raise one error that lists all that is missing, extra or misshapen."""
    found = files.shapes
    expected = {
        name: tensor.their_shape(config.sizes)
        for tensor in family.present(config)
        for layer in range(tensor.depth(config))
        for name in tensor.names(layer, config)
    }
    extra = [n for n in found if n not in expected and n not in copies and not n.endswith("rotary_emb.inv_freq")]
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"extra {name} {found[name]}" for name in extra]
    problems += [
        f"{name} is {found[name]}, config.json says {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{files.directory}: the tensors are not those of its config.json:\n  {lines}")


def load_array(files: WeightFiles, tensor: Tensor, config: Config, sharding, dtype) -> jax.Array:
    """Return a tensor of ours on its devices; what this host holds is read once, and no more than that."""
    size = config.sizes
    shape = ((tensor.depth(config),) if tensor.stacked else ()) + tensor.our_shape(size)
    letters = [*("L" if tensor.stacked else ""), *tensor.ours.split()]
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        parts.setdefault(_bounds(index, shape), np.empty(0))
    places: dict[str, list[tuple[np.ndarray, dict[str, slice]]]] = {}  # their name → where to put which part of it
    for bounds in parts:
        parts[bounds] = out = _aligned([stop - start for start, stop in bounds], np.dtype(dtype))
        wanted = {letter: slice(*bound) for letter, bound in zip(letters, bounds, strict=True)}
        layers = wanted.get("L", slice(0, 1))
        for i, layer in enumerate(range(layers.start, layers.stop)):
            held, names = out[i] if tensor.stacked else out, tensor.names(layer, config)
            if tensor.of_experts:
                for e, name in enumerate(names[wanted["E"]]):
                    places.setdefault(name, []).append((held[e], wanted))
            else:
                places.setdefault(names[0], []).append((held, wanted))
    with ThreadPoolExecutor(READERS) as pool:  # reading and copying are done outside of Python's lock
        list(pool.map(lambda name: _fill(files, tensor, name, places[name], size), places))
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_bounds(index, shape)])


def _bounds(index: tuple[slice, ...] | None, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    assert index is not None  # None is for arrays of no dimensions
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _fill(files: WeightFiles, tensor: Tensor, name: str, places, size: Mapping[str, int]) -> None:
    """Copy the wanted parts of one of their tensors to their places, some of its rows at a time."""
    letters = "".join(groups(tensor.theirs))
    lead, shape = letters[0], [size[letter] for letter in letters]
    axis, order = tensor.dims.index(lead), [letters.index(dim) for dim in tensor.dims]
    row = math.prod(shape[1:])
    rows = max(1, CHUNK_BYTES // max(1, files.view(name).nbytes // shape[0]))
    # a part of every row, as a host of several may hold, is better picked from the mapped file
    whole_rows = sum(out[0].size if axis == 0 else out.size // out.shape[axis] for out, _ in _one_of_each(places, lead))
    read = files.read if whole_rows >= row else files.mapped
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        chosen = [(max(first, w[lead].start), min(last, w[lead].stop), out, w) for out, w in places]
        chosen = [place for place in chosen if place[0] < place[1]]
        if not chosen:
            continue
        block = read(name, first * row, last * row).reshape([last - first, *shape[1:]])
        for start, stop, out, wanted in chosen:
            inner = [slice(start - first, stop - first), *(wanted[letter] for letter in letters[1:])]
            target = (slice(None),) * axis + (slice(start - wanted[lead].start, stop - wanted[lead].start),)
            copy_into(out[target], block[tuple(inner)].transpose(order))


def _one_of_each(places, lead: str):
    """Return the places that want the same rows as the first one: together they may want whole rows."""
    return [(out, wanted) for out, wanted in places if wanted[lead] == places[0][1][lead]]


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that JAX's CPU backend takes as it is: one at any other address it copies."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def write_model(
    directory: str | Path, tensors: Iterator[tuple[str, np.ndarray]], hf_config: Mapping[str, Any], source: str | Path
) -> None:
    """Write a Hugging Face directory shard by shard, never holding more than one shard; tokenizer files are copied.

    Every process goes through `tensors`, which gathers them; process 0 writes.
    """
    if jax.process_index() != 0:
        for _ in tensors:
            pass
        return
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    shards = _write_shards(target, tensors)
    if len(shards) == 1:
        os.replace(target / "part-1.safetensors", target / "model.safetensors")
        (target / INDEX).unlink(missing_ok=True)  # of a larger model that was here before
    else:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        for i, file in enumerate(files):
            os.replace(target / f"part-{i + 1}.safetensors", target / file)
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sum(shard.values()) for shard in shards)}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2))
    (target / "config.json").write_text(json.dumps(dict(hf_config), indent=2))
    for name in TOKENIZER_FILES:
        if (fetched(source) / name).exists():
            shutil.copyfile(fetched(source) / name, target / name)


def _write_shards(target: Path, tensors: Iterator[tuple[str, np.ndarray]]) -> list[dict[str, int]]:
    """Write part-1.safetensors, part-2.safetensors, ...; return the bytes of each tensor by name, shard by shard."""
    from safetensors.numpy import save_file

    shards: list[dict[str, int]] = []
    held: dict[str, np.ndarray] = {}

    def flush():
        if held:
            shards.append({name: array.nbytes for name, array in held.items()})
            save_file(held, target / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
            readable(target / f"part-{len(shards)}.safetensors")
            held.clear()

    for name, array in tensors:
        if sum(a.nbytes for a in held.values()) + array.nbytes > SHARD_BYTES:
            flush()
        held[name] = array
    flush()
    return shards


def readable(path: Path) -> None:
    """Give a file the rights that new files have: safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def host_array(array: jax.Array, dtype=None) -> np.ndarray:
    """Return a whole array on this host, whatever its sharding; every process must ask for it."""
    array = array if dtype is None else array.astype(jnp.dtype(dtype))
    if not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(jax.device_get(array))
