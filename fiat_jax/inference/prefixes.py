"""Keys and values of texts that many requests begin with: read once, kept by a key, saved beside a store."""

import contextlib
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from fiat_jax.checkpoint import Checkpoints
from fiat_jax.distributed import from_main, is_main
from fiat_jax.errors import UserError
from fiat_jax.inference.programs import PrefixPrograms, compile_prefix_programs
from fiat_jax.models.attention import PREFIX_BLOCK, Prefix
from fiat_jax.models.checkpoints import host_array
from fiat_jax.models.model import Model

logger = logging.getLogger(__name__)


class Prefixes:
    """The prefixes that a decoder has read, each of up to `longest` tokens; "" is the key of the one of no tokens.

    A key is a hash of the model, the dtype, the tokenizer and the token ids; where it is saved, of the adapter as well.
    """

    def __init__(self, model: Model, longest: int, programs: PrefixPrograms | None):
        self.model, self.longest, self._programs = model, longest, programs
        self._adapters, self._changed = {"": model.trainable}, False
        self._held: dict[str, Prefix] = {} if programs is None else {"": programs.empty()}
        self._adapter_of: dict[str, str] = {}

    @classmethod
    def of(cls, model: Model, longest: int) -> "Prefixes":
        """Compile what reads prefixes of up to `longest` tokens."""
        return cls(model, longest, compile_prefix_programs(model, longest))

    def fits(self, key: str, adapter: str = "") -> bool:
        """Whether there is such a prefix, read with this adapter; the one of no tokens fits all."""
        return not key or self._adapter_of.get(key) == adapter

    def get(self, key: str) -> Prefix | None:
        """Return the prefix of a key; None where there are no prefixes at all."""
        return self._held.get(key)

    def use(self, trainable: nnx.State, adapter: str = "") -> None:
        """Read with these trained parameters from now on where this adapter is named, and forget what others read."""
        self._adapters[adapter], self._changed = trainable, self._changed or not adapter
        for key in [key for key, name in self._adapter_of.items() if name == adapter]:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget a prefix.

        Raises:
            UserError: there is none of this key.
        """
        if key not in self._adapter_of:
            raise UserError(f"no prefix {key!r}; there are {sorted(self._adapter_of)}")
        del self._held[key], self._adapter_of[key]

    def add(
        self, tokens: Sequence[int], *, adapter: str = "", tokenizer: str = "", directory: str | Path | None = None
    ) -> str:
        """Read a text, unless it is held or was saved in `directory`, and return its key; save it there.

        Raises:
            UserError: none or too many tokens, one that the model lacks, or a saved prefix that cannot be read.
        """
        ids = np.asarray(tokens, np.int32)
        if self._programs is None or not 0 < len(ids) <= self.longest:
            raise UserError(
                f"a prefix of {len(ids)} tokens; this engine takes 1 to {self.longest} (EngineConfig.prefix_length)"
            )
        check_tokens(self.model, ids, "the prefix")
        identity = [self.model.fingerprint, self.model.build.dtype, tokenizer, ids.tolist()]
        identity += [adapter] if adapter else []
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        if key not in self._held:
            use = self._adapters[adapter]
            self._held[key] = self._compute(ids, use) if directory is None else self._saved(ids, use, key, directory)
            self._adapter_of[key] = adapter
        return key

    def _saved(self, ids: np.ndarray, trainable: nnx.State, key: str, directory: str | Path) -> Prefix:
        """Return a prefix from a directory, where it is put if it is not there."""
        if not self.model.fingerprint or (self.model.lora is None and self._changed):
            raise UserError("a prefix is saved under the name of its model's weights, and these have none")
        place = Path(directory) / _adapted(key, trainable if self.model.lora else nnx.State({}))
        if place.is_dir():
            with contextlib.closing(Checkpoints(place)) as saved:
                return self._placed(saved.restore(0, self._cut(self._held[""], len(ids))))
        prefix = self._compute(ids, trainable)
        # under another name first: other processes may save the same one, or look for it, meanwhile
        scratch = place.with_name(f".{place.name}-{from_main(uuid.uuid4().hex)}")
        try:
            with contextlib.closing(Checkpoints(scratch)) as saved:
                facts = {"tokens": len(ids), "model": self.model.fingerprint}
                saved.save(0, self._cut(prefix, len(ids)), facts)
            if is_main():
                _take(scratch, place)
        except UserError as error:
            logger.warning("the prefix is not saved, and will be read again by the next process: %s", error)
        return prefix

    def _compute(self, ids: np.ndarray, trainable: nnx.State) -> Prefix:
        assert self._programs is not None
        with jax.set_mesh(self.model.mesh):
            prefix = self._programs.empty()
            for start in range(0, len(ids), PREFIX_BLOCK):
                part, count = np.zeros(PREFIX_BLOCK, np.int32), min(PREFIX_BLOCK, len(ids) - start)
                part[:count] = ids[start : start + count]
                prefix = self._programs.read(trainable, self.model.frozen, prefix, part, np.int32(count))
        return prefix

    def _cut(self, prefix: Prefix, length: int) -> dict[str, jax.Array]:
        """Return what is saved of a prefix: its own blocks, whatever there is room for."""
        blocks = Prefix.capacity(length)
        with jax.set_mesh(self.model.mesh):
            return {
                "k": prefix.k_LHKP[:, :, :, :blocks],
                "v": prefix.v_LHPK[:, :, :blocks],
                "length": prefix.length,
            }

    def _placed(self, saved: dict[str, jax.Array]) -> Prefix:
        """Return a saved prefix with the room that this engine has."""
        assert self._programs is not None
        with jax.set_mesh(self.model.mesh):
            empty = self._programs.empty()
            layout = jax.tree.map(lambda x: x.sharding, empty)
            k_LHKP = jax.lax.dynamic_update_slice_in_dim(empty.k_LHKP, saved["k"], 0, 3)
            v_LHPK = jax.lax.dynamic_update_slice_in_dim(empty.v_LHPK, saved["v"], 0, 2)
            return jax.device_put(Prefix(k_LHKP, v_LHPK, saved["length"]), layout)


def _take(scratch: Path, place: Path) -> None:
    """Give a saved prefix its name, unless another process has saved it by now."""
    try:
        scratch.rename(place)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        if not place.is_dir():
            raise


def _adapted(key: str, adapter: nnx.State) -> str:
    """Return the name of a prefix that was read with this adapter."""
    digest = hashlib.sha256(key.encode())
    for path, variable in nnx.to_flat_state(adapter):
        digest.update(".".join(map(str, path)).encode())
        digest.update(np.ascontiguousarray(host_array(variable.get_value())).tobytes())
    return digest.hexdigest()[:16]


def check_tokens(model: Model, ids: np.ndarray, what: str) -> None:
    """Refuse tokens that the model lacks."""
    V = model.config.vocab_size
    if ids.min() < 0 or ids.max() >= V:
        raise UserError(
            f"{what} holds token {ids.max() if ids.max() >= V else ids.min()}, the model knows {V}: give the "
            "tokenizer that belongs to the checkpoint"
        )
