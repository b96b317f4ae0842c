"""Options of a request that an endpoint does not take: which one its answer names, and what may be done without it."""

import re
from collections.abc import Collection, Iterator, Mapping

from fiat_jax.errors import UserError

RENAMED = {"max_tokens": "max_completion_tokens"}  # the same limit by another name
# what they change is whether a text can be had again, or its price, and not what θ_β was asked
LEFT_OUT = (
    *("seed", "prompt_cache_key", "prompt_cache_retention", "cache_prompt", "cache_salt"),
    *("stream", "stream_options"),
)
SETTINGS = {"stop": "reasoning.stop", "chat_template_kwargs": "reasoning.chat"}
DECODING = ("temperature", "top_p", "top_k", *RENAMED, *RENAMED.values())
UNSUPPORTED = re.compile(
    r"unsupported|not support|only the default|unknown|unrecogni[sz]ed|unexpected|extra[ _](inputs?|fields?|forbidden)"
    r"|not (permitted|allowed)|invalid (parameter|argument)",
    re.IGNORECASE,
)


def refused_option(error: Mapping[str, object], sent: Collection[str]) -> str | None:
    """Return which of the options sent an endpoint's error refuses as such; None where it is about something else.

    What the error names by a field of its own (`param`, as OpenAI; `loc`, as FastAPI) counts before its words.
    """
    parts = list(_parts(error))
    if not any(
        UNSUPPORTED.search(str(part.get(name))) for part in parts for name in ("message", "msg", "type", "code")
    ):
        return None
    named = [part.get("param") for part in parts] + [place for part in parts for place in part.get("loc") or ()]
    if any(name not in (None, "", "body") for name in named):
        return next((str(name) for name in named if name in sent), None)
    text = " ".join(str(part.get("message") or part.get("msg") or "") for part in parts)
    found = {name: re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in sent}
    places = {name: match.start() for name, match in found.items() if match}
    return min(places, key=lambda name: places[name]) if places else None


def substitute(option: str, error: object, url: str) -> str:
    """Return by what name an option is sent instead, "" where it may be left out.

    Raises:
        UserError: without it θ_β would write other texts than the set's name says.
    """
    if option in RENAMED:
        return RENAMED[option]
    if option in LEFT_OUT:
        return ""
    where = f"reasoning.decoding.{option}" if option in DECODING else SETTINGS.get(option)
    setting = f"{where} of the instruction file" if where else "Endpoint.extra"
    raise UserError(
        f"{url} does not take `{option}` as it is sent ({error}). {setting} sets it, and θ_β would write other texts "
        "without: change or remove it there, which makes another set"
    )


def _parts(error: object) -> Iterator[Mapping]:
    """Yield the objects of an error in the forms of OpenAI, FastAPI and others, the outer ones first."""
    if isinstance(error, Mapping):
        yield error
        for name in ("error", "detail"):
            inner = error.get(name)
            yield from _parts({"message": inner} if isinstance(inner, str) else inner)
    elif isinstance(error, list):
        for one in error:
            yield from _parts(one)
