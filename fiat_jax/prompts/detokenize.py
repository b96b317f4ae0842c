"""Text from tokens as they come: whole characters, up to the first of some strings."""

from collections.abc import Iterable, Sequence

from fiat_jax.prompts.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a part of a character's bytes decodes to


class TextStream:
    """Decodes a completion while it is written.

    `push` returns the text that is certain by now: characters whose bytes have all come, and nothing that may turn out
    to begin one of the strings in `stop`. All that was returned, `finish` included, is the text of all tokens, or what
    of it stands before the first of these strings to be whole; `stopped` then, and nothing follows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()):
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._ids: list[int] = []  # those since the last place between two characters but one
        self._read = 0  # how many of them have been told
        self._held = ""
        self.stopped = False
        self.length = 0  # of the text so far, what is held back included

    def push(self, ids: Sequence[int]) -> str:
        """Take in more tokens, and return what text there is more."""
        if self.stopped:
            return ""
        self._ids += ids
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        return self._hand_on(text)

    def finish(self) -> str:
        """Return what was held back, once no token will follow."""
        if self.stopped:
            return ""
        text, self._read = self._hand_on(self._new_text()), len(self._ids)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._read])
        return self._tokenizer.decode(self._ids)[len(before) :]

    def _hand_on(self, text: str) -> str:
        self._held += text
        self.length += len(text)
        ends = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            _, start = min(ends)  # the first that is whole when characters come one by one, however tokens are cut
            self.length -= len(self._held) - start
            return self._held[:start]
        begun = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        sure, self._held = self._held[: len(self._held) - begun], self._held[len(self._held) - begun :]
        return sure


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
