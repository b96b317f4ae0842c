"""The instruction file: I_β and I_τ of one task, typed, resolved and hashed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.chat import Chat
from fiat_jax.prompts.exemplars import Exemplar, RowsById
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import Row, field_text, label_text
from fiat_jax.prompts.schema import read_yaml
from fiat_jax.prompts.sides import AnswerSide, ReasoningSide, read_answer, read_fields, read_labels, read_reasoning
from fiat_jax.remote import fetched

VERSION = 1


@dataclass(frozen=True)
class Instructions:
    """One instruction file. `source` is its path as the user gave it; `reasoning_side` is None where it has no I_β."""

    source: str
    name: str
    fields: Mapping[str, str]
    labels: Mapping[str, str]
    reasoning_side: ReasoningSide | None
    answer_side: AnswerSide

    @property
    def reasoning(self) -> ReasoningSide:
        """I_β; a UserError where the file has none or its exemplars are not resolved."""
        if self.reasoning_side is None:
            raise UserError(f"{self.source} has no `reasoning` part; add one to ask a large model for reasoning")
        if not self.reasoning_side.exemplars.resolved:
            split = self.reasoning_side.exemplars.split
            raise UserError(f"{self.source} names exemplars by row id; give the task whose {split} split has the rows")
        return self.reasoning_side

    @property
    def exemplar_ids(self) -> frozenset[str]:
        """The ids of all rows that serve as exemplars, resolved or not."""
        return self.reasoning_side.exemplars.ids if self.reasoning_side else frozenset()

    def exemplars_for(self, row: Row) -> tuple[Exemplar, ...]:
        exemplars = self.reasoning.exemplars
        return exemplars.sets[exemplars.choose(row)]

    @property
    def reasoning_hash(self) -> str:
        """sha256 of the resolved text of every exemplar set and of the settings of I_β."""
        side = self.reasoning
        sets = {name: self.reasoning_prefix(name) for name in side.exemplars.sets}
        settings = [side.request.source, side.completion.source, side.stop, side.decoding, side.extract_settings]
        settings += _told(side.chat)
        return _sha256([VERSION, self.fields, self.labels, settings, side.exemplars.by, sets])

    @property
    def answer_hash(self) -> str:
        """sha256 of I_τ with the fields and labels it uses."""
        return self.answer_hash_of(True, True)

    def answer_hash_of(self, instructions: bool, reasoning: bool) -> str:
        """Return the same of what is read without the instructions, or without ŷ_β."""
        side = self.answer_side
        variants = {use: one.source for use, one in side.reasoning.items() if reasoning or use == "none"}
        told = side.instructions if instructions else ""
        parts = [VERSION, self.fields, self.labels, told, side.template.source, variants, side.truncate]
        return _sha256(parts + _told(side.chat))

    def reasoning_prefix(self, set_name: str) -> str:
        """Return what every request with this exemplar set begins with: the instructions, then each exemplar."""
        side = self.reasoning
        blocks = [side.instructions] if side.instructions else []
        for exemplar in side.exemplars.sets[set_name]:
            blocks.append(side.request.fill(self._exemplar_slot(exemplar)) + self.completion(exemplar))
        return "".join(f"{block}\n\n" for block in blocks)

    def completion(self, exemplar: Exemplar) -> str:
        """Return what an exemplar shows after the request: its rationale and answer, as the file writes them."""
        return self.reasoning.completion.fill(self._exemplar_slot(exemplar))

    def field(self, row: Row, name: str) -> str:
        """Return the text of a field of `row`; a UserError where it is missing or of another kind."""
        return field_text(row, name, self.fields[name], source=self.source, needs=tuple(self.fields))

    def verbalise(self, label: object, *, strict: bool = True) -> str:
        """Return the file's word for a task label; without labels, the answer as it is. Strict refuses other labels."""
        text = label_text(label)
        if not self.labels or (text not in self.labels and not strict):
            return text
        if text not in self.labels:
            known = ", ".join(self.labels)
            hint = did_you_mean(text, self.labels)
            raise UserError(f"{self.source}: no word for the label {text!r}; labels has {known}.{hint}")
        return self.labels[text]

    def label_of(self, words: str) -> str:
        """Return the task label that `words` verbalise, in any case; `words` themselves where they verbalise none."""
        for label, spoken in self.labels.items():
            if words.casefold() in (spoken.casefold(), label.casefold()):
                return label
        return words

    def extract(self, completion: str) -> Reasoning:
        """Split a completion of θ_β into its rationale and its answer, as a task label where it is one."""
        found = self.reasoning.extract(completion)
        return Reasoning(found.rationale, None if found.answer is None else self.label_of(found.answer))

    def _exemplar_slot(self, exemplar: Exemplar) -> Callable[[str], str]:
        def value(slot: str) -> str:
            if slot == "rationale":
                return exemplar.rationale
            if slot == "answer":
                return self.verbalise(exemplar.answer)
            assert exemplar.row is not None
            return self.field(exemplar.row, slot)

        return value


def load_instructions(path: str | Path, rows_by_id: RowsById | None = None) -> Instructions:
    """Read an instruction file; `rows_by_id` resolves exemplars named by row id.

    Args:
        path: the YAML file.
        rows_by_id: rows by their id, or a function from a split's name to such a mapping. Without it the exemplars
            stay unresolved: the answer side works, the reasoning side raises.

    Raises:
        UserError: what is wrong, and where in the file.
    """
    source = str(path)
    try:
        text = fetched(path).read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no instruction file {source}; `fiat init DATA.jsonl` drafts one") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    file = read_yaml(text, source)
    if file.content.get("version") != VERSION:
        raise UserError(
            f"{source}: version is {file.content.get('version')!r}; this release reads `version: {VERSION}`"
        )
    file.has("version")
    fields = read_fields(file.section("fields"))
    labels = read_labels(file)
    answer = read_answer(file.section("answer"), fields)
    reasoning = read_reasoning(file.section("reasoning"), fields, labels, rows_by_id) if file.has("reasoning") else None
    name = file.text("name")
    file.done()
    return Instructions(source, name, fields, labels, reasoning, answer)


def _told(chat: Chat | None) -> list[Any]:
    """Return what a chat adds to a hash: nothing where there is none."""
    return [] if chat is None else [[chat.system, chat.variables]]


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
