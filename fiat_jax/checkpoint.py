"""Checkpoints of any tree of arrays, with the facts that belong to it; saved by any mesh, restored onto any other."""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fiat_jax.errors import UserError


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
                f"no checkpoint can be written in {self._directory} ({textwrap.shorten(str(error), 300)}); one that "
                "was whole before still is: make room or mend the permissions, and run the same command to go on"
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # what Orbax and TensorStore raise on damaged files has no common class
            raise UserError(
                f"{self._directory}/{step} cannot be read ({textwrap.shorten(str(error), 160)}); "
                f"if it is damaged, restore it from a copy, or remove {self._directory.parent} to begin this run anew"
            ) from error

    def _check(self, step: int, target: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        stored = self._manager.item_metadata(step)["tree"]
        found = {name: tuple(meta.shape) for name, meta in dict(stored).items()}
        wanted = {name: tuple(struct.shape) for name, struct in target.items()}
        if found != wanted:
            differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            name = differ[0]
            raise UserError(
                f"{self._directory}/{step} was saved by another model or optimizer: {name} is {found.get(name)} there "
                f"and {wanted.get(name)} here ({len(differ)} arrays differ); use another working directory"
            )

    def delete_after(self, step: int) -> None:
        """Remove checkpoints newer than a step."""
        for newer in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(newer)

    def close(self) -> None:
        """Finish what is being saved."""
        self.wait()
        self._manager.close()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _flat(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
