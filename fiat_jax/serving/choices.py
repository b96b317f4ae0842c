"""Completions as OpenAI's API writes them: whole answers, and the chunks of a stream."""

import dataclasses
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from fiat_jax.serving.text import Piece, Token


@dataclasses.dataclass(frozen=True)
class Part:
    """What is new of a pair's answer: reasoning, the answer's text, or what is known at the end."""

    kind: Literal["reasoning", "answer", "end"]
    text: str = ""
    finish_reason: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Usage:
    """Tokens of one request's prompts, how many of them were read before, and tokens of its completions."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Form:
    """How one request's answer is written. Of a chat's first chunk the role is told, too."""

    def __init__(self, model: str, *, chat: bool, log_probs: bool):
        self.chat, self.log_probs = chat, log_probs
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._kind, self._begun = kind, set[int]()

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage, extra: Mapping[str, Any] | None = None) -> dict:
        """Return the answer of all choices, each from its pieces."""
        choices = [self._choice(n, _joined(parts)) for n, parts in enumerate(pieces)]
        return {**self._head, "object": self._kind, "choices": choices, "usage": usage.body(), **(extra or {})}

    def chunk(self, index: int, piece: Piece, reasoning: str | None = None) -> dict:
        """Return a chunk of the stream with what is new of a choice."""
        choice = self._choice(index, piece, delta=True)
        if self.chat:
            choice["delta"] |= {} if reasoning is None else {"reasoning_content": reasoning}
            choice["delta"] |= {} if index in self._begun else {"role": "assistant"}
            self._begun.add(index)
        return self._chunk([choice])

    def part(self, part: Part) -> dict:
        """Return a chunk with what is new of a pair's answer."""
        if part.kind == "answer":
            return self.chunk(0, Piece(0, part.text))
        if part.kind == "reasoning":
            chunk = self.chunk(0, Piece(0, ""), reasoning=part.text)
            return chunk if self.chat else {**chunk, "reasoning": part.text}
        return {**self.chunk(0, Piece(0, "", finish_reason=part.finish_reason)), "fiat": dict(part.details)}

    def answered(self, parts: Sequence[Part], usage: Usage) -> dict:
        """Return a pair's whole answer: what θ_τ says, θ_β's reasoning, and what else is known."""
        text, reasoning = ("".join(p.text for p in parts if p.kind == kind) for kind in ("answer", "reasoning"))
        end, told = parts[-1], any(part.kind == "reasoning" for part in parts)
        answer = self.whole([[Piece(0, text, finish_reason=end.finish_reason)]], usage, {"fiat": dict(end.details)})
        if told:
            place = answer["choices"][0]["message"] if self.chat else answer
            place["reasoning_content" if self.chat else "reasoning"] = reasoning
        return answer

    def last(self, usage: Usage) -> dict:
        """Return the chunk that tells the tokens."""
        return {**self._chunk([]), "usage": usage.body()}

    def _chunk(self, choices: list) -> dict:
        return {**self._head, "object": f"{self._kind}.chunk" if self.chat else self._kind, "choices": choices}

    def _choice(self, index: int, piece: Piece, *, delta: bool = False) -> dict[str, Any]:
        log_probs = None
        if self.log_probs and not (delta and not piece.tokens):
            log_probs = _chat_log_probs(piece.tokens) if self.chat else _log_probs(piece.tokens)
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish_reason, "logprobs": log_probs}
        if not self.chat:
            return {**choice, "text": piece.text}
        if delta:
            return {**choice, "delta": {"content": piece.text} if piece.text else {}}
        return {**choice, "message": {"role": "assistant", "content": piece.text, "refusal": None}}


def _joined(pieces: Iterable[Piece]) -> Piece:
    pieces = list(pieces)
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(0, "".join(p.text for p in pieces), tokens=tokens, finish_reason=pieces[-1].finish_reason)


def _log_probs(tokens: Sequence[Token]) -> dict[str, list]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [None if token.log_prob is None else dict(token.alternatives) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _chat_log_probs(tokens: Sequence[Token]) -> dict[str, list]:
    def told(text: str, log_prob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode(errors="replace"))}

    return {
        "content": [
            {**told(t.text, t.log_prob), "top_logprobs": [told(*other) for other in t.alternatives.items()]}
            for t in tokens
        ]
    }
