"""What θ_β is asked, continued by a rationale that is there: all that stands before its answer, and the answers."""

from collections.abc import Iterable

import numpy as np

from fiat_jax.errors import UserError
from fiat_jax.prompts.fields import Row
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.spaces import moved


class Continued:
    """I_β's `example` up to its {answer}, for rows whose rationale θ_β has written."""

    def __init__(self, renderer: Renderer):
        self._renderer, self._tokenizer = renderer, renderer.tokenizer
        side, source = renderer.instructions.reasoning, renderer.instructions.source
        parts = side.completion.parts
        slots = [part.slot for part in parts]
        if "answer" not in slots:
            raise UserError(f"{source}: reasoning.example shows no {{answer}}, so nothing leads θ_β to one; add it")
        if self._tokenizer.start_id is not None:
            raise UserError(f"{self._tokenizer.source} is an encoder-decoder; labels are ranked by decoders")
        at = slots.index("answer")
        self._between = "".join(part.text for part in parts[1:at])
        self._end = "".join(part.text for part in parts[at + 1 :])
        spaced = side.chat is None and side.request.parts[-1:] and side.request.parts[-1].text.endswith(" ")
        self._before = " " if spaced else ""

    def inputs(self, row: Row, rationale: str) -> np.ndarray:
        """Return int32 [T]: I_β, the row, the rationale, and what leads to the answer."""
        prompt = self._renderer.reasoning_prompt(row)
        pieces = [("literal", self._before), ("rationale", rationale.strip()), ("literal", self._between)]
        ids = [*prompt.prefix_ids, *prompt.own_ids]
        for kind, text in moved([*pieces, ("answer", "?")], self._tokenizer):  # which takes the space before it
            ids += self._tokenizer.encode(text, start=False) if kind != "answer" else []
        return np.array(ids, np.int32)

    def candidates(self, labels: Iterable[object]) -> list[np.ndarray]:
        """Return the ids (int32) of each label, with what follows an answer in the example."""
        return [self._answer(self._renderer.instructions.verbalise(label)) for label in labels]

    def _answer(self, words: str) -> np.ndarray:
        pieces = moved([("literal", self._between), ("answer", words), ("literal", self._end)], self._tokenizer)
        at = [kind for kind, _ in pieces].index("answer")
        ids = [i for _, text in pieces[at:] for i in self._tokenizer.encode(text, start=False)]
        return np.array(ids, np.int32)
