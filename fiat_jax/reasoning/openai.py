"""θ_β behind any OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, hosted services."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.render import ReasoningPrompt
from fiat_jax.reasoning.backend import FAILED, HIDDEN, REFUSED, Completion, Refused, Unavailable
from fiat_jax.reasoning.cost import Prices
from fiat_jax.reasoning.http import BadRequest, JsonClient, NotFound
from fiat_jax.reasoning.options import refused_option, substitute
from fiat_jax.reasoning.pace import Pace
from fiat_jax.reasoning.streamed import CONTENT, REASONING, REASONING_SPELLINGS, Streamed, joined

logger = logging.getLogger(__name__)
CONCURRENCY = 16
PROMPT = {"model", "messages", "prompt"}  # what a request is about, and no option
OURS = "fiat-jax"  # who owns the models of a server of this project, by its own list


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    `url` ends in /v1, which is added where it has no path. `api` is "chat" (one user message) or "completions"; `send`
    is "text" or, for a completions server that takes them, "ids". `revision` tells apart models that the endpoint calls
    by one name. The key is read from the environment variable `key_variable`; where that is unset no key is sent.
    `extra` goes into every request and counts as part of the model's identity. An answer takes at most
    `timeout_seconds`; a request that may still succeed is made up to `attempts` times; an endpoint that asks to wait
    longer than `longest_wait_seconds` ends the run. `reasoning_field` says where a chat endpoint puts the reasoning:
    "content", or "reasoning_content" (also spelt "reasoning"), which is then read before the content. Prices are money
    for a million tokens: of prompts, of answers, and of prompts that the endpoint had read before.
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
    reasoning_field: str = CONTENT
    price_in: float | None = None
    price_out: float | None = None
    price_cached: float | None = None
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
        if self.reasoning_field not in (CONTENT, REASONING) or (self.reasoning_field != CONTENT and self.api != "chat"):
            raise UserError(
                f"Endpoint.reasoning_field is {self.reasoning_field!r}; expected 'content', or "
                "'reasoning_content' with api = 'chat'"
            )
        self._check_prices()

    def _check_prices(self) -> None:
        given = [self.price_in, self.price_out, self.price_cached]
        if any(price is not None and price < 0 for price in given):
            raise UserError(f"Endpoint.price_in, price_out and price_cached are {given}; expected 0 or more")
        if any(price is not None for price in given) and None in given[:2]:
            raise UserError("of Endpoint.price_in and Endpoint.price_out one is missing; give both")

    @property
    def prices(self) -> Prices | None:
        """What tokens cost, None where nothing is said of it; by default those read before cost as others."""
        if self.price_in is None or self.price_out is None:
            return None
        return Prices(self.price_in, self.price_out, self.price_in if self.price_cached is None else self.price_cached)


class OpenAIBackend:
    """Asks the endpoint; `identity` joins the declared name and revision with what /v1/models says of the model.

    At most `concurrency` requests are sent at a time, fewer while the endpoint does not keep up. A server of this
    project is told of I_β first, which it then reads once for all requests.
    """

    first_alone = True  # it finds out which options the endpoint takes

    def __init__(self, endpoint: Endpoint, concurrency: int = CONCURRENCY):
        self._endpoint = endpoint
        key = os.environ.get(endpoint.key_variable)
        self._client = JsonClient(
            endpoint.url,
            key,
            endpoint.key_variable,
            endpoint.timeout_seconds,
            endpoint.longest_wait_seconds,
            Pace(concurrency),
        )
        self._listed: list[str] = []
        self._warned: set[str] = set()
        self._holds_prefixes = False
        self._prefixes: dict[tuple[int, ...], asyncio.Task[None]] = {}
        self._instead: dict[str, str] = {}  # option that the endpoint does not take → the name it is sent by, or ""

    def identity(self) -> dict[str, object]:
        """Ask the endpoint who it is; UserError where nothing answers."""
        reported = asyncio.run(self._ask_identity())
        identity: dict[str, object] = {"name": self._endpoint.model, "revision": self._endpoint.revision}
        for name in ("api", "send", "reasoning_field"):  # other texts come of them
            if getattr(self._endpoint, name) != getattr(Endpoint, name):
                identity[name] = getattr(self._endpoint, name)
        if self._endpoint.extra:
            identity["extra"] = dict(self._endpoint.extra)
        return identity | ({"reported": reported} if reported else {})

    def about(self) -> dict[str, Any]:
        """Return where and how the endpoint is asked: never a key, but the name of the variable that holds it."""
        one = self._endpoint
        return {
            "kind": "openai",
            "url": str(httpx.URL(self._client.url).copy_with(userinfo=b"")),
            "model": one.model,
            "revision": one.revision,
            "api": one.api,
            "send": one.send,
            "reasoning_field": one.reasoning_field,
            "key_variable": one.key_variable,
            "dropped": [f"{name} is sent as {new}" if new else name for name, new in sorted(self._instead.items())],
        }

    async def complete(
        self, prompt: ReasoningPrompt, *, seed: int | None, sample: int, heard: Callable[[str], None] | None = None
    ) -> Completion:
        """Send one prompt; samples of a row differ by their seed alone.

        `heard` is called with pieces of the text as they are written, which together are its beginning, or all of it,
        and none where the endpoint does not stream; once there was one, the request is not made again.
        """
        body, again = self.body(prompt, seed), False
        streamed = heard and Streamed(heard, chat=self._chat, reasoning_first=self._endpoint.reasoning_field != CONTENT)
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        await self._hold_prefix(prompt)
        while True:
            sent = {self._instead.get(name, name): value for name, value in body.items()}
            sent.pop("", None)
            try:
                answer = await self._client.request(
                    "POST", self.path, sent, attempts=self._endpoint.attempts, streamed=streamed
                )
            except NotFound as error:
                known = f" It lists {', '.join(self._listed)}." if self._listed else ""
                raise UserError(f"{error}.{known}{did_you_mean(self._endpoint.model, self._listed)}") from None
            except BadRequest as error:
                option = refused_option(error.error, sent.keys() - PROMPT)
                if option is not None:
                    self._do_without(option, error)
                elif self._holds_prefixes and not again:  # the server was started anew, and knows of none
                    self._prefixes.pop(prompt.prefix_ids, None)
                    await self._hold_prefix(prompt)
                    again = True
                else:
                    raise
                continue
            left_out = tuple(name for name in body if self._instead.get(name) == "")
            return replace(self.read(answer), left_out=left_out)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _hold_prefix(self, prompt: ReasoningPrompt) -> None:
        """Have what all prompts of an exemplar set begin with read by a server that keeps such texts."""
        ids, send = prompt.prefix_ids, self._endpoint.send
        if not (self._holds_prefixes and ids and prompt.own_ids) or self._chat:
            return
        if ids not in self._prefixes:
            given = list(map(int, ids)) if send == "ids" else prompt.prefix_text
            self._prefixes[ids] = asyncio.create_task(self._send_prefix(given))
        await asyncio.shield(self._prefixes[ids])

    async def _send_prefix(self, prompt: object) -> None:
        body = {"model": self._endpoint.model, "prompt": prompt}
        try:
            await self._client.request("POST", "/prefixes", body, attempts=self._endpoint.attempts)
        except (Refused, Unavailable, NotFound) as error:
            logger.warning("%s will read I_β with every request, for it does not keep it: %s", self._client.url, error)

    def _do_without(self, option: str, error: BadRequest) -> None:
        if option not in self._instead:  # else a request that was under way meanwhile found it out as well
            self._instead[option] = instead = substitute(option, error, self._client.url)
            done = f"is sent as `{instead}`" if instead else "is left out"
            logger.warning("%s does not take `%s`, which %s (%s)", self._client.url, option, done, error)

    @property
    def _chat(self) -> bool:
        return self._endpoint.api == "chat"

    @property
    def path(self) -> str:
        """Where requests go, below the endpoint's URL."""
        return "/chat/completions" if self._chat else "/completions"

    def body(self, prompt: ReasoningPrompt, seed: int | None) -> dict[str, object]:
        """Return a request, with all options that are asked for."""
        body: dict[str, object] = {"model": self._endpoint.model, **prompt.decoding}
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if seed is not None:
            body["seed"] = seed
        text = prompt.prefix_text + prompt.own_text
        if self._chat:
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
        self._holds_prefixes = mine.get("owned_by") == OURS
        # other entries, such as the time of creation, change with every start of a server
        return {name: mine[name] for name in ("id", "root", "owned_by") if isinstance(mine.get(name), str)}

    def read(self, answer: dict) -> Completion:
        """Return what an answer holds; raises Refused where that is nothing usable."""
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        finish_reason = str(choice.get("finish_reason") or "unknown")
        message = choice.get("message") if self._chat else choice
        message = message if isinstance(message, dict) else {}
        content = message.get(CONTENT if self._chat else "text")
        came = _with_usage(answer, content if isinstance(content, str) else "", finish_reason)
        if finish_reason == "content_filter":
            raise Refused("the endpoint's content filter withheld the answer", REFUSED, came)
        if message.get("refusal"):
            raise Refused(f"the model refuses: {str(message['refusal'])[:200]}", REFUSED, came)
        shown = next((message[name] for name in REASONING_SPELLINGS if isinstance(message.get(name), str)), "")
        if self._endpoint.reasoning_field == REASONING:
            return self._with_reasoning(came, shown, message)
        if not came.text.strip() and (came.hidden_tokens or shown):
            where = "leaves it out of `content`" if shown else "does not show it"
            reason = f"the endpoint wrote reasoning and no more, and {where} (finish reason {finish_reason}); "
            raise Refused(reason + "raise decoding.max_tokens, or declare Endpoint.reasoning_field", HIDDEN, came)
        if not isinstance(content, str):
            raise Refused(f"the answer holds no text: {str(answer)[:200]}", completion=came)
        self._warn_of_other_reasoning(shown, came.text)
        return came

    def _with_reasoning(self, came: Completion, shown: str, message: Mapping[str, object]) -> Completion:
        if not shown.strip():
            names, bucket = ", ".join(message), HIDDEN if came.hidden_tokens else FAILED
            wanted = " or ".join(f"`{name}`" for name in REASONING_SPELLINGS)
            reason = f"the answer has no {wanted}, which Endpoint.reasoning_field declares; it has {names}"
            raise Refused(reason, bucket, came)
        return replace(came, text=joined(shown, came.text), hidden_tokens=None)

    def _warn_of_other_reasoning(self, shown: str, text: str) -> None:
        if shown:
            self._warn(
                "%s sends reasoning beside `content`, and only `content` is stored; Endpoint.reasoning_field="
                "'reasoning_content' would store both",
                self._client.url,
            )
        if "<think>" in text:
            self._warn("answers of %s hold <think>: they are stored as they are, mark and all", self._client.url)

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._warned:  # once, not for each row
            self._warned.add(message)
            logger.warning(message, *values)


def _with_usage(answer: dict, text: str, finish_reason: str) -> Completion:
    usage = answer.get("usage") or {}
    read, written = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    served_by = "/".join(str(answer[name]) for name in ("model", "system_fingerprint") if answer.get(name))
    return Completion(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        served_by=served_by or None,
        cached_tokens=read.get("cached_tokens"),
        hidden_tokens=written.get("reasoning_tokens") or None,
    )
