"""The server's paths: OpenAI's, and those that tell how it is doing."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fiat_jax.errors import UserError
from fiat_jax.serving.choices import Form, Part, Usage
from fiat_jax.serving.errors import ApiError, refused
from fiat_jax.serving.guard import Guard
from fiat_jax.serving.pair import Pair
from fiat_jax.serving.protocol import ChatRequest, CompletionRequest, PrefixRequest, Sampling, parse
from fiat_jax.serving.service import Service
from fiat_jax.serving.streams import EventStream, Flow, collected, mapped, merged, unless_gone
from fiat_jax.serving.text import Ask, Piece, TextModel, echoed

T = TypeVar("T")
Said = TypeVar("Said", Piece, Part)
BODY_SECONDS = 30.0  # in which a client must have sent its body


def make_app(service: Service, key: str | None) -> Any:
    """Return the ASGI application."""
    handlers = Handlers(service)
    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/metrics", handlers.metrics),
        Route("/v1/models", handlers.list_models),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
        Route("/v1/prefixes", handlers.list_prefixes),
        Route("/v1/prefixes", handlers.add_prefix, methods=["POST"]),
        Route("/v1/prefixes/{key}", handlers.drop_prefix, methods=["DELETE"]),
    ]
    errors: dict[Any, Any] = {ApiError: _api_error, 404: _no_path, 405: _no_path, Exception: _our_error}
    return Guard(Starlette(routes=routes, exception_handlers=errors), service, key)


class Handlers:
    """One method a path."""

    def __init__(self, service: Service):
        self._service, self._began = service, int(time.time())
        self._page = resources.files("fiat_jax.serving").joinpath("page.html").read_text("utf-8")

    async def page(self, request: Request) -> Response:
        """A page to try the models by hand."""
        return HTMLResponse(self._page)

    async def health(self, request: Request) -> Response:
        """Whether requests are answered: 200, or 503 while starting and draining."""
        state = self._service.gate.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """The counters for Prometheus."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_models(self, request: Request) -> Response:
        """The models with what identifies them."""
        self._service.find(None)
        return JSONResponse({"object": "list", "data": [self._listed(m) for m in self._service.models.values()]})

    def _listed(self, model: TextModel | Pair) -> dict[str, Any]:
        head = {"id": model.name, "object": "model", "created": self._began, "owned_by": "fiat-jax"}
        if isinstance(model, Pair):
            return {**head, "fields": list(model.fields), **model.identity}
        engine = model.worker.engine
        longest = engine.config.prefix_length + engine.config.slot_length
        return {**head, **model.identity, "max_model_len": longest, "attention": str(engine.model.build.kernel)}

    async def completions(self, request: Request) -> Response:
        """Go on with prompts."""
        body: CompletionRequest = parse(CompletionRequest, await self._body(request))
        model = self._service.find(body.model)
        request.state.model = model.name
        self._log_asked(request, body.row or body.prompt)
        if body.best_of not in (None, body.n):
            raise ApiError(400, "best_of: only as many as `n` are drawn here", param="best_of")
        self._check_top(body.logprobs, "logprobs")
        form = Form(model.name, chat=False, log_probs=body.logprobs is not None)
        if isinstance(model, Pair):
            if len(body.prompts) != 1 or not isinstance(body.prompts[0], str):
                raise ApiError(400, "prompt: a fused pair answers one text, or a row's fields as JSON", param="prompt")
            return await self._answer_row(request, model, _row(model, body.row, body.prompts[0]), form, body)
        _refuse_row(body.row)
        count, most = len(body.prompts), self._service.serve.samples
        if not 0 < count <= most:
            raise ApiError(400, f"{count} prompts in one request; this server takes 1 to {most}", param="prompt")
        prompts = [await self._encoded(model, prompt, "prompt") for prompt in body.prompts]
        new = self._new_tokens(model, prompts, body.max_tokens)
        texts = [prompt if isinstance(prompt, str) else None for prompt in body.prompts]
        asks = [
            dataclasses.replace(self._ask(ids, body, new, body.logprobs), echo=body.echo, prompt=text)
            for ids, text in zip(prompts, texts, strict=True)
        ]
        return await self._respond(request, model, asks, form, body)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body: ChatRequest = parse(ChatRequest, await self._body(request))
        model = self._service.find(body.model)
        request.state.model = model.name
        self._log_asked(request, body.row or [[message.role, message.text] for message in body.messages])
        self._check_top(body.top_logprobs, "top_logprobs")
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        form = Form(model.name, chat=True, log_probs=bool(body.logprobs))
        if isinstance(model, Pair):
            said = [message.text for message in body.messages]
            if body.row is None and (len(said) != 1 or body.messages[0].role != "user"):
                raise ApiError(400, "messages: a fused pair answers one user's message", param="messages")
            return await self._answer_row(request, model, _row(model, body.row, said[-1]), form, body)
        _refuse_row(body.row)
        messages = [("system" if m.role == "developer" else m.role, m.text) for m in body.messages]
        try:
            ids = await asyncio.to_thread(model.encode_chat, messages, body.chat_template_kwargs)
        except UserError as error:
            raise refused(error, "messages") from None
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(400, "give max_completion_tokens or max_tokens, not both", param="max_tokens")
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        new = self._new_tokens(model, [ids], asked)
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        return await self._respond(request, model, [self._ask(ids, body, new, alternatives)], form, body)

    async def list_prefixes(self, request: Request) -> Response:
        """The prefixes that are held, by model."""
        self._service.find(None)
        texts = [model for model in self._service.models.values() if isinstance(model, TextModel)]
        data = [_prefix(model, key) for model in texts for key in model.prefixes]
        return JSONResponse({"object": "list", "data": data})

    async def add_prefix(self, request: Request) -> Response:
        """Have a text read that requests will begin with."""
        body: PrefixRequest = parse(PrefixRequest, await self._body(request))
        model = self._service.find(body.model)
        if not isinstance(model, TextModel):
            raise ApiError(400, f"{model.name} is a fused pair, whose prefix is its own", param="model")
        if self._service.gate.state != "ready":
            raise ApiError(503, f"the server is {self._service.gate.state}", retry_after=5)
        ids = await self._encoded(model, body.prompt, "prompt")
        try:
            held = await model.add_prefix(ids)
        except UserError as error:
            raise refused(error, "prompt") from None
        return JSONResponse(_prefix(model, held.key))

    async def drop_prefix(self, request: Request) -> Response:
        """Forget a prefix."""
        key = request.path_params["key"]
        for model in self._service.models.values():
            if isinstance(model, TextModel) and key in model.prefixes:
                try:
                    await model.drop_prefix(key)
                except UserError as error:
                    raise ApiError(409, str(error)) from None
                return JSONResponse({"id": key, "object": "prefix", "deleted": True})
        raise ApiError(404, f"there is no prefix {key!r}")

    def _log_asked(self, request: Request, asked: Any) -> None:
        """Have the log tell what was asked and answered, where that is wanted."""
        if self._service.serve.log_text:
            request.state.asked = asked

    async def _body(self, request: Request) -> bytes:
        """Read a body, as far as one may go."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json")
        most, parts, size = self._service.serve.body_bytes, [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise ApiError(413, f"the body is larger than {most} bytes")
                    parts.append(part)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
        except ClientDisconnect:
            raise ApiError(499, "the client went away") from None
        return b"".join(parts)

    async def _encoded(self, model: TextModel, prompt: str | Sequence[int], param: str) -> tuple[int, ...]:
        try:
            if isinstance(prompt, str):
                return await asyncio.to_thread(model.encode, prompt)
            return model.encode(prompt)
        except UserError as error:
            raise refused(error, param) from None

    def _check_top(self, wanted: int | None, param: str) -> None:
        most = self._service.serve.alternatives
        if wanted is not None and wanted > most:
            raise ApiError(400, f"{param} is {wanted}; this server tells at most {most}", param=param)

    def _new_tokens(self, model: TextModel, prompts: Sequence[Sequence[int]], wanted: int | None) -> int:
        """Return how many tokens may be written; as many as there is room for where no number is named."""
        room = min(map(model.room, prompts), default=0)
        longest = max(map(len, prompts), default=0)
        if (wanted is None and room < 1) or (wanted or 0) > room:
            raise ApiError(
                400,
                f"a prompt of {longest} tokens and {wanted or 1} new ones: this server takes "
                f"{model.worker.engine.config.slot_length} together, behind a prefix that it holds",
                param="prompt",
            )
        return room if wanted is None else wanted

    def _ask(self, ids: tuple[int, ...], body: Sampling, new: int, alternatives: int | None) -> Ask:
        if body.n > self._service.serve.samples:
            most = self._service.serve.samples
            raise ApiError(400, f"n is {body.n}; this server draws at most {most}", param="n")
        sampling = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p, "seed": body.seed}
        told = {"log_probs": alternatives is not None, "alternatives": alternatives or 0}
        return Ask(ids, new, body.n, stop=body.stop_texts, **sampling, **told)

    async def _respond(
        self, request: Request, model: TextModel, asks: Sequence[Ask], form: Form, body: Sampling
    ) -> Response:
        usage = Usage(sum(len(ask.ids) for ask in asks), sum(model.cached(ask.ids) for ask in asks))
        written = merged([_written(model, ask) for ask in asks])
        counted = self._counted(request, model.name, usage, written)
        pieces = mapped(lambda found: (found[0] * body.n + found[1].sample, found[1]), counted)
        if body.stream:
            return await self._stream(request, mapped(lambda found: form.chunk(*found), pieces), form, usage, body)
        parts: list[list[Piece]] = [[] for _ in range(len(asks) * body.n)]
        for index, piece in await unless_gone(request, collected(pieces)):
            parts[index].append(piece)
        return JSONResponse(form.whole(parts, usage))

    async def _answer_row(self, request: Request, pair: Pair, row: dict, form: Form, body: Sampling) -> Response:
        """Let a pair answer a row; θ_β's words are told as `reasoning_content`, what else is known as `fiat`."""
        _refuse_sampling(body)
        usage = Usage()
        admitted = mapped(lambda part: (0, part), self._admitted(pair.stream(row, usage)))
        parts = mapped(lambda found: found[1], self._counted(request, pair.name, usage, admitted))
        if body.stream:
            return await self._stream(request, mapped(form.part, parts), form, usage, body)
        return JSONResponse(form.answered(await unless_gone(request, collected(parts)), usage))

    async def _stream(self, request: Request, chunks: Flow[dict], form: Form, usage: Usage, body: Sampling) -> Response:
        async def with_usage() -> Flow[dict]:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
            if body.stream_options and body.stream_options.include_usage:
                yield form.last(usage)

        return await EventStream.begun(request, with_usage())

    async def _admitted(self, parts: Flow[T]) -> Flow[T]:
        self._service.gate.enter(1)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    yield part
        except UserError as error:
            raise refused(error) from None
        finally:
            self._service.gate.leave(1)

    async def _counted(
        self, request: Request, model: str, usage: Usage, pieces: Flow[tuple[int, Said]]
    ) -> Flow[tuple[int, Said]]:
        """Pass pieces on, and count their tokens and how long the first one took."""
        metrics, first, texts = self._service.metrics, True, dict[tuple[int, int], list[str]]()
        try:
            async with contextlib.aclosing(pieces):
                async for n, piece in pieces:
                    if first:
                        metrics.first.labels(model).observe(time.monotonic() - request.state.began)
                        first = False
                    if isinstance(piece, Piece):
                        usage.completion += piece.count
                    elif isinstance(piece, Part) and "without_reasoning" in piece.details:
                        metrics.without_reasoning.labels(model).inc()
                    if self._service.serve.log_text:
                        place = n, piece.sample if isinstance(piece, Piece) else 0
                        texts.setdefault(place, []).append(piece.text)
                    yield n, piece
        finally:
            request.state.usage = usage
            if self._service.serve.log_text:
                request.state.answered = ["".join(texts[place]) for place in sorted(texts)]
            for kind, count in (("prompt", usage.prompt), ("cached", usage.cached), ("completion", usage.completion)):
                metrics.tokens.labels(model, kind).inc(count)


async def _written(model: TextModel, ask: Ask) -> Flow[Piece]:
    """Yield the pieces of a prompt's completions, each behind the prompt itself where that is wanted."""
    shown = 0
    if ask.echo:
        try:
            scored = (await model.score([ask.ids], ask.alternatives))[0] if ask.log_probs else None
        except UserError as error:
            raise refused(error, "echo") from None
        text, tokens = await asyncio.to_thread(echoed, model.tokenizer, ask.ids, ask.prompt, scored)
        shown = len(text)
        end = None if ask.max_new_tokens else "length"
        for sample in range(ask.samples):
            yield Piece(sample, text, tokens=tokens, finish_reason=end)
    if not ask.max_new_tokens:
        if not ask.echo:
            for sample in range(ask.samples):
                yield Piece(sample, "", finish_reason="length")
        return
    async with contextlib.aclosing(model.stream(ask)) as pieces:
        async for piece in pieces:
            yield piece.shifted(shown) if shown else piece


def _row(pair: Pair, given: dict | None, text: str) -> dict:
    """Return the row that a request is about: its own fields, a JSON object, or the text of the only field."""
    if given is not None:
        return given
    with contextlib.suppress(ValueError):
        found = from_json(text)  # which also takes neither half characters nor brackets without end
        if isinstance(found, dict):
            return found
    if len(pair.fields) != 1:
        fields = ", ".join(pair.fields)
        raise ApiError(400, f"{pair.name} reads rows with the fields {fields}: send them as a JSON object, or as `row`")
    return {pair.fields[0]: text}


def _refuse_row(row: dict | None) -> None:
    if row is not None:
        raise ApiError(400, "row: for a fused pair alone; ask for its model", param="row")


def _refuse_sampling(body: Sampling) -> None:
    """A pair decodes as it was trained and measured: what would change that is refused."""
    log_probs = getattr(body, "logprobs", None)
    set_here = {"n": body.n != 1, "stop": bool(body.stop_texts), "logprobs": log_probs not in (None, False)}
    set_here["echo"] = bool(getattr(body, "echo", False))
    for name, given in set_here.items():
        if given:
            raise ApiError(
                400, f"{name}: a fused pair answers as it was trained and measured; leave it out", param=name
            )


def _prefix(model: TextModel, key: str) -> dict[str, Any]:
    held = model.prefixes[key]
    return {"id": key, "object": "prefix", "model": model.name, "tokens": len(held.ids), "used": held.used}


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _our_error(request: Request, error: Exception) -> Response:
    told = ApiError(500, f"the server failed; its log says why beside the id {request.state.request_id}")
    return JSONResponse(told.body(), 500)


async def _no_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    known = "/v1/completions, /v1/chat/completions, /v1/models, /v1/prefixes, /health, /metrics"
    message = f"{request.method} {request.url.path}: there is no such path; there are {known}"
    return JSONResponse(ApiError(status, message).body(), status, headers=getattr(error, "headers", None))
