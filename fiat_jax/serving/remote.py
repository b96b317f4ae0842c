"""A model behind an OpenAI-compatible endpoint that takes token ids, in the place of one in this process."""

import os
from collections.abc import Sequence

from fiat_jax.errors import UserError
from fiat_jax.reasoning.backend import Refused, Unavailable
from fiat_jax.reasoning.http import JsonClient
from fiat_jax.reasoning.openai import Endpoint
from fiat_jax.reasoning.pace import Pace
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.streams import Flow
from fiat_jax.serving.text import Ask, Piece


class RemoteText:
    """θ_τ with its adapter as another server has it, say vLLM: it writes, and scores answers that are given.

    It gets so many requests at a time, fewer where it does not keep up.
    """

    def __init__(self, endpoint: Endpoint, requests: int):
        self._endpoint = endpoint
        key = os.environ.get(endpoint.key_variable)
        waits = endpoint.timeout_seconds, endpoint.longest_wait_seconds
        self._client = JsonClient(endpoint.url, key, endpoint.key_variable, *waits, Pace(requests))

    def cached(self, ids: Sequence[int]) -> int:
        """Nothing is known of what the endpoint has read before."""
        return 0

    async def stream(self, ask: Ask, *, admitted: bool = False) -> Flow[Piece]:
        """Yield the one greedy completion of a prompt, whole."""
        found = await self._complete({"prompt": list(ask.ids), "max_tokens": ask.max_new_tokens, "temperature": 0})
        choice = _choices(found, 1)[0]
        count = (found.get("usage") or {}).get("completion_tokens") or 0
        yield Piece(0, str(choice.get("text")), count, finish_reason=str(choice.get("finish_reason")))

    async def rank(self, text: Sequence[int], answers: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Return the log-probabilities of each answer's tokens behind a text (`echo` with log-probabilities)."""
        prompts = [[*text, *answer] for answer in answers]
        asked = {"prompt": prompts, "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1}
        choices = _choices(await self._complete(asked), len(answers))
        found = []
        for prompt, answer, choice in zip(prompts, answers, choices, strict=True):
            told = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if not len(prompt) <= len(told) <= len(prompt) + 1:
                raise ApiError(503, f"θ_τ's endpoint told {len(told)} log-probabilities of {len(prompt)} tokens")
            found.append(tuple(map(float, told[len(text) : len(text) + len(answer)])))
        return found

    async def _complete(self, body: dict[str, object]) -> dict:
        asked = {"model": self._endpoint.model, **body, **self._endpoint.extra}
        try:
            return await self._client.request("POST", "/completions", asked, attempts=self._endpoint.attempts)
        except (Refused, Unavailable, UserError) as error:
            raise ApiError(503, f"the tuned model did not answer: {error}", retry_after=5) from None


def _choices(answer: dict, count: int) -> list[dict]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != count or not all(isinstance(c, dict) for c in choices):
        raise ApiError(503, f"θ_τ's endpoint gave no {count} choices: {str(answer)[:200]}")
    return sorted(choices, key=lambda choice: choice.get("index", 0))
