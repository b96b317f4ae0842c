"""An answer as its events bring it: told piece by piece, and in the end the object that an answer in one piece is."""

from collections.abc import Callable, Mapping
from typing import Any

CONTENT, REASONING = "content", "reasoning_content"
REASONING_SPELLINGS = (REASONING, "reasoning")  # the second is what vLLM calls it now


def joined(reasoning: str, content: str) -> str:
    """Return the text of an endpoint that puts reasoning apart."""
    return "\n\n".join(part for part in (reasoning.strip(), content.strip()) if part)


class Streamed:
    """Puts the events of one answer together.

    Args:
        heard: is called with every piece of the text, which together are what the text is in the end, or begins with.
        chat: whether events are those of /chat/completions.
        reasoning_first: whether the text is the reasoning that the endpoint puts apart, and then the content.
    """

    def __init__(self, heard: Callable[[str], None], *, chat: bool, reasoning_first: bool):
        self._heard, self._chat, self._reasoning_first = heard, chat, reasoning_first
        self._parts: dict[str, str] = {}
        self._about: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._told = ""

    @property
    def begun(self) -> bool:
        """Whether some of the text has been told: asked again, an endpoint may write another."""
        return bool(self._told)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        self._about |= {name: event[name] for name in ("model", "system_fingerprint", "usage") if event.get(name)}
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta") if self._chat else choice
        for name in (CONTENT, *REASONING_SPELLINGS, "refusal") if self._chat else ("text",):
            piece = delta.get(name) if isinstance(delta, dict) else None
            if isinstance(piece, str) and not (name in REASONING_SPELLINGS and self._parts.get(CONTENT)):
                self._parts[name] = self._parts.get(name, "") + piece
        text = self._text()
        self._told, new = text, text[len(self._told) :]
        if new:
            self._heard(new)

    def answer(self) -> dict[str, Any]:
        """Return the object of an answer in one piece."""
        message = {"message": self._parts} if self._chat else self._parts
        return {**self._about, "choices": [{**message, "finish_reason": self._finish_reason}]}

    def _text(self) -> str:
        """Return the text so far; of reasoning and content only what cannot be white space at an end."""
        content = self._parts.get(CONTENT if self._chat else "text", "")
        if not self._reasoning_first:
            return content
        shown = next((self._parts[name] for name in REASONING_SPELLINGS if name in self._parts), "")
        return joined(shown, content) if shown.strip() else ""
