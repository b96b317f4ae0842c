"""θ_β behind any OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, hosted services."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.render import ReasoningPrompt
from fiat_jax.reasoning.backend import Completion, Refused, Unavailable
from fiat_jax.reasoning.http import JsonClient, NotFound


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    `url` ends in /v1, which is added where it has no path. `api` is "chat" (one user message) or "completions"; `send`
    is "text" or, for a completions server that takes them, "ids". `revision` tells apart models that the endpoint calls
    by one name. The key is read from the environment variable `key_variable`; where that is unset no key is sent.
    `extra` goes into every request and counts as part of the model's identity. An answer takes at most
    `timeout_seconds`; a request that may still succeed is made up to `attempts` times; an endpoint that asks to wait
    longer than `longest_wait_seconds` ends the run.
    """

    url: str = "http://localhost:8000/v1"
    model: str = ""
    revision: str = ""
    api: str = "chat"
    send: str = "text"
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    attempts: int = 8
    longest_wait_seconds: float = 600.0
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if self.api not in ("chat", "completions"):
            raise UserError(f"Endpoint.api is {self.api!r}; expected 'chat' or 'completions'")
        if self.send not in ("text", "ids") or (self.send == "ids" and self.api == "chat"):
            raise UserError(f"Endpoint.send is {self.send!r}; expected 'text', or 'ids' with api = 'completions'")
        if not self.model:
            raise UserError("Endpoint.model is empty; name the model as the endpoint does")
        if self.attempts < 1:
            raise UserError(f"Endpoint.attempts is {self.attempts}; expected 1 or more")


class OpenAIBackend:
    """Asks the endpoint; `identity` joins the declared name and revision with what /v1/models says of the model."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        key = os.environ.get(endpoint.key_variable)
        self._client = JsonClient(
            endpoint.url, key, endpoint.key_variable, endpoint.timeout_seconds, endpoint.longest_wait_seconds
        )
        self._listed: list[str] = []

    def identity(self) -> dict[str, object]:
        """Ask the endpoint who it is; UserError where nothing answers."""
        reported = asyncio.run(self._ask_identity())
        identity: dict[str, object] = {"name": self._endpoint.model, "revision": self._endpoint.revision}
        if self._endpoint.extra:
            identity["extra"] = dict(self._endpoint.extra)
        return identity | ({"reported": reported} if reported else {})

    async def complete(self, prompt: ReasoningPrompt, *, seed: int | None, sample: int) -> Completion:
        """Send one prompt; samples of a row differ by their seed alone."""
        path = "/chat/completions" if self._endpoint.api == "chat" else "/completions"
        try:
            answer = await self._client.request(
                "POST", path, self._body(prompt, seed), attempts=self._endpoint.attempts
            )
        except NotFound as error:
            known = f" It lists {', '.join(self._listed)}." if self._listed else ""
            raise UserError(f"{error}.{known}{did_you_mean(self._endpoint.model, self._listed)}") from None
        return _completion(answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _body(self, prompt: ReasoningPrompt, seed: int | None) -> dict[str, object]:
        body: dict[str, object] = {"model": self._endpoint.model, **prompt.decoding}
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if seed is not None:
            body["seed"] = seed
        text = prompt.prefix_text + prompt.own_text
        if self._endpoint.api == "chat":
            told = [{"role": "system", "content": prompt.chat.system}] if prompt.chat and prompt.chat.system else []
            body["messages"] = [*told, {"role": "user", "content": text}]
            if prompt.chat and prompt.chat.variables:
                body["chat_template_kwargs"] = dict(prompt.chat.variables)
        elif self._endpoint.send == "text":
            if prompt.chat:
                raise UserError(
                    "the instruction file says `chat`, which plain text for /completions does not carry; set "
                    "Endpoint.api='chat', or Endpoint.send='ids' with the model's tokenizer"
                )
            body["prompt"] = text
        else:
            body["prompt"] = [int(i) for i in (*prompt.prefix_ids, *prompt.own_ids)]
        return body | dict(self._endpoint.extra)

    async def _ask_identity(self) -> dict[str, str]:
        try:
            answer = await self._client.request("GET", "/models", attempts=min(3, self._endpoint.attempts))
        except (Refused, NotFound):
            return {}  # many gateways keep no list
        except Unavailable as error:
            raise UserError(
                f"{self._client.url} does not answer: {error}. Is the server up, and this its URL?"
            ) from None
        finally:
            await self.close()
        listed = [model for model in answer.get("data") or [] if isinstance(model, dict)]
        self._listed = [str(model.get("id")) for model in listed]
        mine = next((model for model in listed if model.get("id") == self._endpoint.model), {})
        # other entries, such as the time of creation, change with every start of a server
        return {name: mine[name] for name in ("id", "root", "owned_by") if isinstance(mine.get(name), str)}


def _completion(answer: dict) -> Completion:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    finish_reason = str(choice.get("finish_reason") or "unknown")
    if finish_reason == "content_filter":
        raise Refused("the endpoint's content filter withheld the answer")
    if not isinstance(text, str):
        raise Refused(f"the answer holds no text: {str(answer)[:200]}")
    usage = answer.get("usage") or {}
    served_by = "/".join(str(answer[name]) for name in ("model", "system_fingerprint") if answer.get(name))
    return Completion(
        text, finish_reason, usage.get("prompt_tokens"), usage.get("completion_tokens"), served_by or None
    )
