"""The fused pair (Algorithm 2 of the paper): θ_β writes about a row, and θ_τ answers having read it."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import Row
from fiat_jax.prompts.render import ReasoningPrompt, Rendered, Renderer
from fiat_jax.reasoning.backend import Refused, Unavailable
from fiat_jax.reasoning.native import sampling_of
from fiat_jax.reasoning.openai import OpenAIBackend
from fiat_jax.serving.choices import Part, Usage
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.streams import Flow
from fiat_jax.serving.text import Ask, Piece, TextModel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answered:
    """θ_τ's answer: a label or a text; log-likelihoods of the labels where they were ranked."""

    text: str
    scores: Mapping[str, float] | None = None
    finish_reason: str = "stop"


class Reasoner(Protocol):
    """θ_β: streams what it writes about a prompt, and counts tokens."""

    def stream(self, prompt: ReasoningPrompt, seed: int | None, usage: Usage) -> Flow[Piece]: ...


class Answerer(Protocol):
    """θ_τ: answers a rendered row; `row` names the candidates."""

    async def answer(self, row: Row, rendered: Rendered, usage: Usage) -> Answered: ...


class LocalReasoner:
    """θ_β in this process."""

    def __init__(self, model: TextModel):
        self._model = model

    async def stream(self, prompt: ReasoningPrompt, seed: int | None, usage: Usage) -> Flow[Piece]:
        """Yield what the engine writes."""
        ids, decoding = prompt.prefix_ids + prompt.own_ids, prompt.decoding
        ask = Ask(
            ids,
            int(decoding["max_tokens"]),
            seed=seed or 0,
            stop=prompt.stop,
            **sampling_of(decoding),
        )
        usage.prompt += len(ids)
        usage.cached += self._model.cached(ids)
        async for piece in self._model.stream(ask, admitted=True):
            usage.completion += piece.count
            yield piece


class RemoteReasoner:
    """θ_β behind an endpoint, which has so many seconds for a request, attempts and waiting between them included."""

    def __init__(self, backend: OpenAIBackend, seconds: float):
        self._backend, self._seconds = backend, seconds

    async def stream(self, prompt: ReasoningPrompt, seed: int | None, usage: Usage) -> Flow[Piece]:
        """Yield what the endpoint writes as it comes, or all at once where it does not stream."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        asked = asyncio.create_task(self._backend.complete(prompt, seed=seed, sample=0, heard=pieces.put_nowait))
        asked.add_done_callback(lambda _: pieces.put_nowait(None))
        told, ends = "", asyncio.get_running_loop().time() + self._seconds
        try:
            while True:
                async with asyncio.timeout_at(ends):
                    piece = await pieces.get()
                if piece is None:
                    break
                told += piece
                yield Piece(0, piece, 0)
            found = await asked
        except TimeoutError:
            raise ApiError(504, f"the large model did not answer within {self._seconds:g} s") from None
        except (Refused, Unavailable, UserError) as error:
            raise ApiError(503, f"the large model did not answer: {error}", retry_after=5) from None
        finally:
            asked.cancel()
        usage.prompt += found.prompt_tokens or 0
        usage.completion += found.completion_tokens or 0
        rest = found.text.removeprefix(told)
        yield Piece(0, rest, found.completion_tokens or 0, finish_reason=found.finish_reason)


class Ranker:
    """θ_τ in this process, where the answer is one of some labels: the likeliest."""

    def __init__(self, model: TextModel, labels: Callable[[Row], Sequence[str]], renderer: Renderer, normalise: bool):
        self._model, self._labels, self._renderer, self._normalise = model, labels, renderer, normalise

    async def answer(self, row: Row, rendered: Rendered, usage: Usage) -> Answered:
        """Return the label whose words the model would sooner write than any other's."""
        labels, inputs = self._labels(row), rendered.inputs.tolist()
        candidates = [ids.tolist() for ids in self._renderer.candidates(labels)]
        scored = await self._model.rank(inputs, candidates)
        sums = [float(np.sum(log_probs)) for log_probs in scored]
        if self._normalise:
            sums = [total / len(ids) for total, ids in zip(sums, candidates, strict=True)]
        scores = dict(zip(labels, sums, strict=True))
        usage.prompt += len(inputs)
        return Answered(max(labels, key=lambda label: scores[label]), scores)


class Generator:
    """θ_τ in this process, where the answer is a text: written greedily, and found as it is in evaluation."""

    def __init__(self, model: TextModel, max_new_tokens: int, extract: Callable[[Row, str], str | None]):
        self._model, self._max_new_tokens, self._extract = model, max_new_tokens, extract

    async def answer(self, row: Row, rendered: Rendered, usage: Usage) -> Answered:
        """Return the answer that is found in what the model writes; all of that where none is found."""
        ids = tuple(rendered.inputs.tolist())
        usage.prompt += len(ids)
        usage.cached += self._model.cached(ids)
        text, reason = "", "stop"
        async for piece in self._model.stream(Ask(ids, self._max_new_tokens), admitted=True):
            text, reason = text + piece.text, piece.finish_reason or reason
            usage.completion += piece.count
        return Answered(self._extract(row, text) or text.strip(), finish_reason=reason)


class Pair:
    """One tuned θ_τ with the θ_β whose reasoning it reads, or without one where it was tuned without.

    Args:
        fields: what a row has; one that has a single field may be given as plain text.
        check: returns a row that a client gave, or says what it lacks.
        renderer: of what θ_β is asked; None where θ_τ reads no reasoning.
        render: what θ_τ reads of a row and its ŷ_β (None: what the instruction file says for rows without).
        seed: of what θ_β draws for a row, where it samples.
        identity: what clients are told of it.
    """

    def __init__(
        self,
        name: str,
        fields: Sequence[str],
        check: Callable[[Row], Row],
        renderer: Renderer | None,
        render: Callable[[Row, Reasoning | None], Rendered],
        reasoner: Reasoner | None,
        answerer: Answerer,
        *,
        seed: Callable[[Row], int | None],
        answer_without: bool = False,
        identity: Mapping[str, Any] | None = None,
    ):
        self.name, self.fields, self.identity = name, tuple(fields), dict(identity or {})
        self._check, self._renderer, self._render = check, renderer, render
        self._reasoner, self._answerer = reasoner, answerer
        self._seed, self._answer_without = seed, answer_without

    async def stream(self, row: Row, usage: Usage) -> Flow[Part]:
        """Yield the reasoning as it is written, then the answer, then what else is known of both.

        Raises:
            UserError: a field is missing, or too long even when cut.
            ApiError: a model did not answer.
        """
        row = self._check(row)
        reasoning, details, text, reason = None, {}, "", None
        if self._reasoner is not None and self._renderer is not None:
            prompt = await asyncio.to_thread(self._renderer.reasoning_prompt, row)
            try:
                async for piece in self._reasoner.stream(prompt, self._seed(row), usage):
                    text, reason = text + piece.text, piece.finish_reason or reason
                    yield Part("reasoning", piece.text)
                reasoning = self._renderer.instructions.extract(text)
                details = {"large_answer": reasoning.answer, "reasoning_finish_reason": reason}
            except ApiError as error:
                if error.status < 500 or not self._answer_without:
                    raise
                logger.warning("answered without reasoning: %s", error.message)
                reasoning, details = None, {"without_reasoning": error.message}
        rendered = await asyncio.to_thread(self._render, row, reasoning)
        found = await self._answerer.answer(row, rendered, usage)
        yield Part("answer", found.text)
        details |= {"scores": dict(found.scores)} if found.scores else {}
        details |= {"cut": dict(rendered.dropped)} if any(rendered.dropped.values()) else {}
        yield Part("end", finish_reason=found.finish_reason, details=details)
