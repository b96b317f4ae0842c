"""The bodies of requests, as OpenAI's API has them. What is not known or not done here is refused, never ignored."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from fiat_jax.serving.errors import ApiError

Texts = Annotated[list[str], Field(max_length=16)]
MANY = 1 << 31
TokenId = Annotated[int, Field(ge=0, lt=MANY)]
Nothing = Annotated[float, Field(ge=0, le=0)]


class StreamOptions(pydantic.BaseModel):
    """`include_usage`: a last chunk tells the tokens; `include_obfuscation` is taken, and does nothing."""

    model_config = pydantic.ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(pydantic.BaseModel):
    """What requests of both kinds have in common."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=MANY)] = 0
    n: Annotated[int, Field(ge=1, lt=MANY)] = 1
    seed: int | None = None
    stop: str | Texts | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=MANY)] | None = None
    # taken where they say what is done anyway
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    # said for the provider's own books
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The strings that end a completion."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=0, lt=MANY)] | None = 16
    logprobs: Annotated[int, Field(ge=0, lt=MANY)] | None = None
    echo: bool = False
    best_of: int | None = None
    row: dict[str, Any] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore
        return self.prompt  # pyright: ignore


class TextPart(pydantic.BaseModel):
    """A part of a message."""

    model_config = pydantic.ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(pydantic.BaseModel):
    """One turn of a conversation."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    role: Annotated[str, Field(pattern="^(system|developer|user|assistant)$")]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """What the message says."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`; `row` holds the fields of a task's row, for a fused pair."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=MANY)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, lt=MANY)] | None = None
    chat_template_kwargs: dict[str, str | int | float | bool] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    row: dict[str, Any] | None = None


class PrefixRequest(pydantic.BaseModel):
    """`POST /v1/prefixes`: a text, or token ids, that requests of a model will begin with."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    prompt: str | list[TokenId]


def parse(kind: Any, body: bytes) -> Any:
    """Return the request that a body holds.

    Raises:
        ApiError: 400 with the first thing that is wrong with it.
    """
    try:
        return kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        field = str(errors[0]["loc"][0]) if errors[0]["loc"] else None
        raise ApiError(400, _explained(errors, field), param=field) from None


FORMS = {
    "prompt": "a text, a list of texts, a list of token ids (0 or more), or a list of such lists",
    "stop": "a text, or a list of up to 16 texts",
}


def _explained(errors: Sequence[Mapping[str, Any]], field: str | None) -> str:
    """Return what is wrong with the first field that is; of one that has several forms, what these are."""
    if field in FORMS and len(errors) > 1:
        return f"{field}: expected {FORMS[field]}"
    where, what = ".".join(map(str, errors[0]["loc"])) or "the body", errors[0]["msg"]
    return f"{where}: this server does not know it" if errors[0]["type"] == "extra_forbidden" else f"{where}: {what}"
