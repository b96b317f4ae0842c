"""θ_β in this process: the engine, asked as any other backend."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.inference.worker import Worker
from fiat_jax.models.checkpoints import open_checkpoint
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import ModelConfig, load_model
from fiat_jax.prompts.detokenize import TextStream
from fiat_jax.prompts.render import ReasoningPrompt, Renderer
from fiat_jax.reasoning.backend import Completion, Refused
from fiat_jax.remote import is_remote
from fiat_jax.sharding import DECODE, MeshConfig, axis_size

logger = logging.getLogger(__name__)
SHORTEST_PREFIX = 16  # tokens: shorter ones are read with each request
MOST_PREFIXES = 8  # that are held at once, one for each set of exemplars


@dataclass(frozen=True)
class Native:
    """θ_β's weights, and how many requests the engine answers at once.

    Args:
        path: a directory in Hugging Face layout, with its tokenizer.
        name: what the store calls the model; the directory's name by default.
        dtype: of weights and activations.
        slots, block, prefill_rows: see `EngineConfig`; its lengths follow from the prompts.
        prefixes: a directory that keeps the keys and values of I_β for the next run; empty: they are not kept.
    """

    path: str = ""
    name: str = ""
    dtype: str = "bfloat16"
    slots: int = 64
    block: int = 16
    prefill_rows: int = 8
    prefixes: str = ""

    def __post_init__(self):
        if not self.path:
            raise UserError("no weights of θ_β: give --gin.Native.path=DIRECTORY (Hugging Face layout)")
        ModelConfig(self.path, self.dtype)


def engine_shapes(native: Native, own: int, prefix: int, ways: int) -> EngineConfig:
    """Return the shapes of an engine for texts of `own` tokens behind a prefix; `ways`: devices that divide rows."""
    return EngineConfig(
        slots=native.slots,
        slot_length=own,
        prefix_length=prefix,
        block=native.block,
        prefill_rows=native.prefill_rows,
        shortest_bucket=max(16, own // 4),
    ).divided(ways)


class NativeBackend:
    """The engine as a backend: loaded and compiled with the first prompt, for what `expect` was told will come.

    `worker` drives it from then on, until `close`.
    """

    def __init__(self, native: Native, mesh: MeshConfig, renderer: Renderer):
        self._native, self._mesh_config = native, mesh
        self._renderer, self._tokenizer = renderer, renderer.tokenizer
        self._checkpoint = open_checkpoint(native.path)
        self._shapes: EngineConfig | None = None
        self.worker: Worker | None = None
        self._attention = ""
        self._prefixes: dict[tuple[int, ...], Future[str]] = {}

    first_alone = False

    @property
    def concurrency(self) -> int:
        """How many requests keep all slots busy: those in them, and as many that wait."""
        return 2 * self._native.slots

    def identity(self) -> dict[str, object]:
        """The weights' fingerprint, a name for people, the dtype that they compute in, and what makes their tokens."""
        return {
            "name": self._native.name or Path(self._native.path).resolve().name,
            "fingerprint": self._checkpoint.files.fingerprint(),
            "dtype": self._native.dtype,
            "tokenizer": self._renderer.reasoning_identity,
        }

    def about(self) -> dict[str, Any]:
        """Return where the weights are, and once they are loaded which kernel computes attention."""
        path = self._native.path
        return {
            "kind": "native",
            "path": path if is_remote(path) else str(Path(path).resolve()),
            "dtype": self._native.dtype,
            **({"attention": self._attention} if self._attention else {}),
        }

    def expect(self, prompts: Sequence[ReasoningPrompt]) -> None:
        """Choose the engine's shapes for the prompts that will come.

        Raises:
            UserError: the longest does not fit the model.
        """
        if not prompts:
            return
        split = [self._split(prompt) for prompt in prompts]
        prefix = max(len(shared) for shared, _ in split)
        own = max(len(ids) + _new_tokens(prompt.decoding) for (_, ids), prompt in zip(split, prompts, strict=True))
        limit = self._checkpoint.config.max_length
        if limit is not None and prefix + own > limit:
            raise UserError(
                f"I_β has {prefix} tokens and the longest row with its answer {own}; {self._native.path} reads "
                f"{limit}: use fewer exemplars, or lower decoding.max_tokens in the instruction file"
            )
        ways = axis_size(self._mesh_config.build(), DECODE.batch)
        self._shapes = engine_shapes(self._native, own, prefix, ways)

    async def complete(self, prompt: ReasoningPrompt, *, seed: int | None, sample: int) -> Completion:
        """Complete one prompt; samples of a row differ by their seed alone."""
        worker = self._started(prompt)
        shared, own = self._split(prompt)
        try:
            request = Request(
                own,
                _new_tokens(prompt.decoding),
                prefix=await self._key(worker, shared),
                seed=seed or 0,
                **sampling_of(prompt.decoding),
            )
            if prompt.stop:
                text, reason, count = await self._until(worker, request, prompt.stop)
            else:
                (found,) = await asyncio.wrap_future(worker.submit(request))
                text, reason, count = self._tokenizer.decode(found.tokens), found.finish_reason, len(found.tokens)
        except UserError as error:
            raise Refused(str(error)) from None
        return Completion(text, reason, len(shared) + len(own), count)

    async def _until(self, worker: Worker, request: Request, stop: Sequence[str]) -> tuple[str, str, int]:
        """Return the text before any of the strings, why it ends, and how many tokens were written."""
        stream, text, reason, count = TextStream(self._tokenizer, stop), "", "", 0
        async with worker.stream(request) as news:
            async for new in news:
                text, reason, count = text + stream.push(new.tokens), new.finish_reason or "", count + len(new.tokens)
                if stream.stopped:
                    break
        text += stream.finish()
        return text, "stop" if stream.stopped else reason, count

    async def close(self) -> None:
        """End the engine's thread."""
        if self.worker is not None:
            await asyncio.to_thread(self.worker.close)
            self.worker = None

    def _started(self, prompt: ReasoningPrompt) -> Worker:
        if self.worker is None:
            if self._shapes is None:
                self.expect([prompt])
            weights, mesh = ModelConfig(self._native.path, self._native.dtype), self._mesh_config.build()
            model = load_model(weights, mesh, tuned=False, rules=DECODE)
            self.worker = Worker(Engine(model, self._tokenizer.eos_id, self._shapes))
            self._attention = str(model.build.kernel)
        return self.worker

    def _split(self, prompt: ReasoningPrompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what of a prompt is read as a shared prefix, and what as its own."""
        whole = prompt.prefix_ids + prompt.own_ids
        shared = len(prompt.prefix_ids) if prompt.own_ids else 0
        if shared < SHORTEST_PREFIX or not isinstance(self._checkpoint.config, DecoderConfig):
            shared = 0
        return whole[:shared], whole[shared:]

    async def _key(self, worker: Worker, shared: tuple[int, ...]) -> str:
        if not shared:
            return ""
        if shared not in self._prefixes:
            if len(self._prefixes) == MOST_PREFIXES:
                logger.warning("more than %d sets of exemplars are held at once: they take memory", MOST_PREFIXES)
            where = self._native.prefixes or None
            self._prefixes[shared] = worker.add_prefix(shared, tokenizer=self._tokenizer.fingerprint, directory=where)
        return await asyncio.shield(asyncio.wrap_future(self._prefixes[shared]))


def sampling_of(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return how an engine samples by what an instruction file says of decoding; greedily where it says nothing."""
    return {
        "temperature": float(decoding.get("temperature", 0.0)),
        "top_k": int(decoding.get("top_k", 0)),
        "top_p": float(decoding.get("top_p", 1.0)),
    }


def _new_tokens(decoding: Mapping[str, object]) -> int:
    return int(str(decoding["max_tokens"]))
