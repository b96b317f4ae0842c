"""Checkpoints of any tree of arrays, with the facts that belong to it; saved by any mesh, restored onto any other."""

import contextlib
import json
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fiat_jax import remote
from fiat_jax.distributed import barrier, is_main
from fiat_jax.errors import UserError, both_ends

TREE, FACTS = "tree.safetensors", "facts.json"


def open_checkpoints(directory: Path, keep: int = 1) -> "Checkpoints | StoredCheckpoints":
    """Return the checkpoints in a directory, or in the object store for which it stands."""
    url = remote.url_of(directory)
    return Checkpoints(directory, keep) if url is None else StoredCheckpoints(url, keep)


class Checkpoints:
    """Numbered checkpoints in a directory, the newest `keep` of them; each is whole or absent.

    A tree is stored flat, by the path of each array, so that a file does not depend on Python classes.
    """

    def __init__(self, directory: str | Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._directory = Path(directory).absolute()
        handlers = {"tree": ocp.PyTreeCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()}
        with self._writing():
            self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def save(self, step: int, tree: Any, facts: Mapping[str, Any]) -> None:
        """Save in the background, after any save before it.

        The tree is copied first: its owner may give its buffers away while they are being written.
        """
        self.wait()
        items = ocp.args.Composite(
            tree=ocp.args.PyTreeSave(_flat(jax.tree.map(jnp.copy, tree))),
            facts=ocp.args.JsonSave(dict(facts)),  # pyright: ignore
        )
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Wait until what was saved is whole on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """Return the newest complete step, or None."""
        return self._manager.latest_step()

    def facts(self, step: int) -> dict[str, Any]:
        """Return what was saved beside a step's tree; a file that cannot be read is a UserError."""
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
            return dict(restored["facts"])

    def restore(self, step: int, like: Any) -> Any:
        """Return a step's tree with the structure, dtypes and shardings of `like` (arrays or ShapeDtypeStructs).

        Raises:
            UserError: the checkpoint holds other arrays than `like`, or cannot be read.
        """
        flat, structure = jax.tree_util.tree_flatten_with_path(like)
        target = {
            _name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for path, leaf in flat
        }
        self.wait()
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args)  # pyright: ignore
        with self._reading(step):
            self._check(step, target)
            restored = self._manager.restore(step, args=ocp.args.Composite(tree=args))["tree"]
        return jax.tree_util.tree_unflatten(structure, [restored[_name(path)] for path, _ in flat])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # of a collective between hosts, not of the disk
        except Exception as error:  # what Orbax and TensorStore raise where they cannot write has no common class
            raise UserError(
                f"no checkpoint can be written in {self._directory} ({both_ends(str(error))}); one that "
                "was whole before still is: make room or mend the permissions, and run the same command to go on"
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):  # the latter of a collective between hosts, not of the disk
            raise
        except Exception as error:  # what Orbax and TensorStore raise on damaged files has no common class
            raise UserError(
                f"{self._directory}/{step} cannot be read ({textwrap.shorten(str(error), 160)}); "
                f"if it is damaged, restore it from a copy, or remove {self._directory.parent} to begin this run anew"
            ) from error

    def _check(self, step: int, target: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        stored = self._manager.item_metadata(step)["tree"]
        _same_shapes(f"{self._directory}/{step}", {name: meta.shape for name, meta in dict(stored).items()}, target)

    def delete_after(self, step: int) -> None:
        """Remove checkpoints newer than a step."""
        for newer in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(newer)

    def close(self) -> None:
        """Finish what is being saved."""
        self.wait()
        self._manager.close()


class StoredCheckpoints:
    """The same in an object store: the arrays gathered on process 0, which writes one file and then its facts.

    A checkpoint is there once its facts are. Process 0's memory holds all that is saved; that suits adapters.
    """

    def __init__(self, url: str, keep: int = 1):
        self._url, self._keep = url, keep
        self._files, self._root = remote.open_store(url)
        self._saving: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, tree: Any, facts: Mapping[str, Any]) -> None:
        """Gather the arrays, then save them in the background, after any save before it."""
        self.wait()
        arrays = {name: _gathered(leaf) for name, leaf in _flat(tree).items()}
        if is_main():
            self._saving = threading.Thread(target=self._write, args=(step, arrays, json.dumps(dict(facts))))
            self._saving.start()

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], facts: str) -> None:
        from safetensors.numpy import save_file

        try:
            with tempfile.TemporaryDirectory(prefix="fiat-") as scratch:
                save_file(dict(arrays), Path(scratch) / TREE)
                self._files.put_file(str(Path(scratch) / TREE), f"{self._root}/{step}/{TREE}")
            self._files.pipe_file(f"{self._root}/{step}/{FACTS}", facts.encode())
            for older in self._steps()[: -self._keep]:
                self._remove(older)
        except Exception as error:  # raised again in the caller's thread, where it can be acted on
            self._error = error

    def wait(self) -> None:
        """Wait until what was saved is whole in the store."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(
                f"no checkpoint can be written in {self._url} ({both_ends(str(error))}); one that was "
                "whole before still is: mend the rights or the network, and run the same command to go on"
            ) from error

    def latest(self) -> int | None:
        """Return the newest complete step, or None."""
        return max(self._steps(), default=None)

    def facts(self, step: int) -> dict[str, Any]:
        """Return what was saved beside a step's tree."""
        with self._reading(step):
            return json.loads(self._files.cat_file(f"{self._root}/{step}/{FACTS}"))

    def restore(self, step: int, like: Any) -> Any:
        """Return a step's tree with the structure, dtypes and shardings of `like`, of which each process reads its own.

        Raises:
            UserError: the checkpoint holds other arrays than `like`, or cannot be read.
        """
        from safetensors.numpy import load_file

        self.wait()
        barrier(f"{self._url} is whole")
        flat, structure = jax.tree_util.tree_flatten_with_path(like)
        with self._reading(step), tempfile.TemporaryDirectory(prefix="fiat-") as scratch:
            self._files.get_file(f"{self._root}/{step}/{TREE}", f"{scratch}/{TREE}")
            arrays = load_file(f"{scratch}/{TREE}")
            wanted = {_name(path): leaf for path, leaf in flat}
            _same_shapes(f"{self._url}/{step}", {name: array.shape for name, array in arrays.items()}, wanted)
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[_name(path)].__getitem__)
            for path, leaf in flat
        ]
        return jax.tree_util.tree_unflatten(structure, placed)

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a store's errors and those of damaged files have no common class
            raise UserError(
                f"{self._url}/{step} cannot be read ({textwrap.shorten(str(error), 160)}); if it is damaged, remove it"
            ) from error

    def delete_after(self, step: int) -> None:
        """Remove checkpoints newer than a step."""
        for newer in [found for found in self._steps() if found > step]:
            if is_main():
                self._remove(newer)

    def close(self) -> None:
        """Finish what is being saved."""
        self.wait()

    def _steps(self) -> list[int]:
        with remote.explained(self._url):
            self._files.invalidate_cache()
            names = [path.split("/") for path in self._files.find(self._root)]
        return sorted(int(parts[-2]) for parts in names if parts[-1] == FACTS)

    def _remove(self, step: int) -> None:
        """Remove its facts first: what is cut short then is no checkpoint."""
        with remote.explained(f"{self._url}/{step}"):
            for name in (FACTS, TREE):
                self._files.rm_file(f"{self._root}/{step}/{name}")


def _gathered(array: jax.Array) -> np.ndarray:
    """Return a copy of the whole array, in every process."""
    if array.is_fully_addressable:
        return np.array(array)
    if array.is_fully_replicated:
        return np.array(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _same_shapes(where: str, stored: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    found = {name: tuple(shape) for name, shape in stored.items()}
    wanted = {name: tuple(struct.shape) for name, struct in target.items()}
    if found != wanted:
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        name = differ[0]
        raise UserError(
            f"{where} was saved by another model or optimizer: {name} is {found.get(name)} there "
            f"and {wanted.get(name)} here ({len(differ)} arrays differ); use another working directory"
        )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _flat(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
