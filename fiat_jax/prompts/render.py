"""The one renderer: what θ_β is asked, and what θ_τ reads and writes, in training, evaluation and serving.

Segments are tokenised apart and their ids concatenated: so the loss mask, the cuts and the shared prefix are exact.
Spaces between a literal and its neighbour go to the side where the tokenizer holds them: to the segment that follows
where words begin with their space, to the one that precedes where they end with it. White space that the tokenizer
folds is folded before.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.chat import Chat, Turns, turns
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import Row, place
from fiat_jax.prompts.instructions import Instructions
from fiat_jax.prompts.reasoned import Words
from fiat_jax.prompts.sides import USES
from fiat_jax.prompts.spaces import Pieces, moved, trailing_spaces
from fiat_jax.prompts.template import Part
from fiat_jax.prompts.tokenizer import Tokenizer

ReasoningUse = Literal["full", "answer", "rationale", "none"]
TARGET = ("written", "answer", "eos")
LARGE_ANSWER = "large answer"  # with a space, so that it is no field of the user's


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered example.

    `kind` is bos, chat (of the chat template), instructions, literal, field:NAME, reasoning (the rationale),
    large_answer (θ_β's), end (of what an encoder reads); of the target written (by θ_τ before its answer), answer, eos.
    """

    kind: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """A rendered example; `dropped` counts the tokens that were cut, by segment kind."""

    segments: tuple[Segment, ...]
    dropped: Mapping[str, int]

    @property
    def inputs(self) -> np.ndarray:
        """int32 [T]: everything before the answer, beginning with the start token where the tokenizer has one.

        What an encoder reads ends with the end token, as its checkpoints were trained.
        """
        return _ids(segment for segment in self.segments if segment.kind not in TARGET)

    @property
    def target(self) -> np.ndarray:
        """int32 [T]: what is learnt, up to the end token; empty where no target was asked."""
        return _ids(segment for segment in self.segments if segment.kind in TARGET)


@dataclass(frozen=True)
class ReasoningPrompt:
    """What θ_β is asked: a prefix shared, byte for byte, by all rows of an exemplar set, and the row's own end.

    Ids hold a chat template's tokens where the file says `chat`; texts do not: an endpoint for chat adds its own.
    """

    prefix_ids: tuple[int, ...]
    own_ids: tuple[int, ...]
    prefix_text: str
    own_text: str
    stop: tuple[str, ...]
    decoding: Mapping[str, Any]
    chat: Chat | None = None


class Renderer:
    """Renders rows by one instruction file.

    Args:
        max_length: the most tokens that inputs and target may have together.
        use_instructions: False leaves I_τ's instructions out.
        reasoning_use: what θ_τ sees of ŷ_β; a part that a row's ŷ_β lacks is left out by the file's template for that.
    """

    def __init__(
        self,
        instructions: Instructions,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        use_instructions: bool = True,
        reasoning_use: ReasoningUse = "full",
    ):
        if reasoning_use not in USES:
            known = ", ".join(USES)
            hint = did_you_mean(reasoning_use, USES)
            raise UserError(f"reasoning_use is {reasoning_use!r}; known are {known}.{hint}")
        self.instructions = instructions
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.use_instructions = use_instructions
        self.reasoning_use: ReasoningUse = reasoning_use
        self._constant_ids: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._prefixes: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._apart = tokenizer.start_id is not None  # inputs and answer are two texts
        side = instructions.answer_side
        last, self._turns = side.template.parts[-1:], self._read_turns(side.chat)
        self._answer_space = trailing_spaces(last[0].text) if last and tokenizer.spaces_lead else ""
        if tokenizer.folds_spaces:
            self._answer_space = " " if last and last[0].text[-1:].isspace() else ""
        if self._turns or self._apart:
            self._answer_space = self._turns.lead if self._turns else ""
        self._end = self._read_end()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that determines a rendered answer besides the row and its ŷ_β."""
        parts = [self.instructions.answer_hash, self.tokenizer.fingerprint]
        parts += [self.max_length, self.use_instructions, self.reasoning_use, *([self._turns] if self._turns else [])]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def answer(self, row: Row, reasoning: Reasoning | None, target: str | None, *, reserve: int = 0) -> Rendered:
        """Render θ_τ's side of a row.

        Args:
            reasoning: the row's ŷ_β; None renders what the file says for rows without it.
            target: the task's label or answer; None renders the inputs alone.
            reserve: tokens to keep free after the inputs for answers that `target` does not show.

        Raises:
            UserError: a missing field, an answer without tokens, or a row that does not fit max_length even when cut.
        """
        segments = self._read(moved(self._pieces(row, reasoning), self.tokenizer))
        written: list[Segment] = []
        if target is not None:
            written = [self._answer_segment(target, row), self._end]
        room = max(_count(written), reserve, self._longest_label)
        segments, dropped = self._fit(segments, room, row)
        return Rendered((*segments, *written), dropped)

    def reasoned(self, row: Row, rationale: str | None, answer: str | None, *, most: int, reserve: int) -> Rendered:
        """Render a row whose reasoning θ_τ is to write itself, and then its answer where one is given.

        Args:
            rationale: what is learnt; None renders the inputs alone.
            most: tokens of the rationale; what is longer is cut, and counted as `reasoning`.
            reserve: tokens to keep free after the inputs, whatever the target.
        """
        if rationale is not None and not rationale.strip():
            raise UserError(f"{place(row)} has no rationale to learn; leave it out")
        inputs, written = self.words.asked(self._pieces(row, None)), []
        if rationale is not None:
            words = None if answer is None else self.instructions.verbalise(answer)
            written = self.words.written(rationale.strip(), words)
        if self._turns or self._apart:  # two texts
            inputs, written = moved(inputs, self.tokenizer), moved(written, self.tokenizer)
            written[:1] = [(kind, self._answer_space + text) for kind, text in written[:1]]
        else:
            whole = moved([*inputs, *written], self.tokenizer)
            first = next((n for n, (kind, _) in enumerate(whole) if kind == "written"), len(whole))
            inputs, written = whole[:first], whole[first:]
        segments, dropped = self._fit(self._read(inputs), reserve, row)
        learnt = self._learnt(written)
        excess = len(learnt[0].ids) - most if learnt else 0
        if excess > 0:
            dropped["reasoning"], ids = excess, learnt[0].ids[:most]
            learnt[0] = replace(learnt[0], ids=ids, text=self.tokenizer.decode(ids))
        return Rendered((*segments, *learnt, *([self._end] if learnt else [])), dropped)

    @cached_property
    def words(self) -> Words:
        """In what words θ_τ writes its own reasoning."""
        return Words.of(self.instructions)

    def _learnt(self, pieces: Pieces) -> list[Segment]:
        """Return what is learnt before the end token, each piece by itself."""
        found, start = [], self._apart or bool(self._turns and self.tokenizer.starts_after(self._turns.between))
        for kind, text in pieces:
            ids = tuple(self.tokenizer.encode(text, start=start and not found)) if text else ()
            found += [Segment("answer" if kind == "answer" else "written", text, ids)] if ids else []
        return found

    def candidates(self, labels: Iterable[object]) -> list[np.ndarray]:
        """Return the ids (int32) of each label as `answer` would write it, with the end token."""
        return [np.array(self._answer_segment(label).ids + self._end.ids, np.int32) for label in labels]

    @property
    def end_id(self) -> int:
        """The token that ends an answer: the tokenizer's own, or the one that ends a turn of its chat template."""
        return self._end.ids[-1]

    @property
    def identity(self) -> str:
        """What makes tokens of this file's text: the tokenizer, and its chat template where it is used."""
        return self._identity_of(self._turns)

    @property
    def reasoning_identity(self) -> str:
        """The same of what θ_β is told."""
        return self._identity_of(self._reasoning_turns)

    def _identity_of(self, turns: Turns | None) -> str:
        if turns is None:
            return self.tokenizer.fingerprint
        return hashlib.sha256(repr([self.tokenizer.fingerprint, turns]).encode()).hexdigest()

    def reasoning_prompt(self, row: Row) -> ReasoningPrompt:
        """Render what θ_β is asked about a row: I_β and its exemplars first, then the row."""
        side, chat = self.instructions.reasoning, self._reasoning_turns
        prefix_text, prefix_ids = self._reasoning_prefix(side.exemplars.choose(row))
        own_text = side.request.fill(lambda field: self.instructions.field(row, field)).rstrip(" ")
        told = chat.begin + own_text if chat and not prefix_text else own_text
        start = self.tokenizer.starts_after(chat.opening) if chat else True
        own_ids = self.tokenizer.encode(told, start=start and not prefix_text)
        own_ids += self.tokenizer.encode_template(chat.between) if chat else []
        own_ids += [self.tokenizer.eos_id] if self._apart else []
        return ReasoningPrompt(prefix_ids, tuple(own_ids), prefix_text, own_text, side.stop, side.decoding, side.chat)

    def reasoning_prefixes(self) -> list[tuple[int, ...]]:
        """Return the ids of I_β with its exemplars, one for each set of these."""
        return [self._reasoning_prefix(name)[1] for name in self.instructions.reasoning.exemplars.sets]

    def _reasoning_prefix(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self._prefixes:
            text, chat = self.instructions.reasoning_prefix(name), self._reasoning_turns
            begin = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
            begin = tuple(self.tokenizer.encode_template(chat.opening)) if chat else begin
            told = chat.begin + text if chat and text else text
            start = self.tokenizer.starts_after(chat.opening) if chat else True
            self._prefixes[name] = text, (*begin, *self.tokenizer.encode(told, start=start))
        return self._prefixes[name]

    @cached_property
    def _reasoning_turns(self) -> Turns | None:
        return self._read_turns(self.instructions.reasoning.chat)

    def _read_turns(self, chat: Chat | None) -> Turns | None:
        if chat is None:
            return None
        template, source = self.tokenizer.chat_template, self.tokenizer.source
        if template is None:
            raise UserError(
                f"{self.instructions.source} says `chat`, but {source} has no chat template; leave `chat` out, or give "
                "the tokenizer of an instruction-tuned model"
            )
        if self._apart:
            raise UserError(f"{self.instructions.source} says `chat`, but {source} is an encoder-decoder: leave it out")
        found = turns(template, chat, self.tokenizer.special_tokens, source)
        if not self.tokenizer.spaces_lead:
            return found
        ends = {name: text.rstrip(" ") for name, text in (("opening", found.opening), ("between", found.between))}
        begin, lead = found.opening.removeprefix(ends["opening"]), found.between.removeprefix(ends["between"])
        return replace(found, **ends, begin=begin, lead=lead + found.lead)

    def _read_end(self) -> Segment:
        """Return what ends an answer; in a chat the first special token after it, with what may stand before that."""
        if self._turns is None:
            return self._token_segment("eos", self.tokenizer.eos_id)
        ids = self.tokenizer.encode_template(self._turns.closing)
        ends = [n for n, token in enumerate(ids) if self.tokenizer.is_special(token)]
        if not ends:
            raise UserError(
                f"the chat template of {self.tokenizer.source} ends an answer with no special token, so nothing would "
                "stop it; it cannot be used"
            )
        kept = tuple(ids[: ends[0] + 1])
        return Segment("eos", "".join(map(self.tokenizer.token, kept)), kept)

    @cached_property
    def _longest_label(self) -> int:
        # reserved for every row, so that the cut does not depend on which label is the right one
        return max(map(len, self.candidates(self.instructions.labels)), default=0)

    def _pieces(self, row: Row, reasoning: Reasoning | None) -> Pieces:
        """Return (kind, text) of everything before the answer, as the file has it."""
        side = self.instructions.answer_side
        pieces = []
        if self.use_instructions and side.instructions:
            pieces.append(("instructions", f"{side.instructions}\n\n"))
        for part in self._fill_reasoning(reasoning, row):
            if part.slot is None and pieces and pieces[-1][0] == "literal":
                pieces[-1] = ("literal", pieces[-1][1] + part.text)
            elif part.slot is None:
                pieces.append(("literal", part.text))
            elif part.slot in ("reasoning", LARGE_ANSWER):
                pieces.append((part.slot.replace(" ", "_"), part.text))
            else:
                pieces.append((f"field:{part.slot}", self.instructions.field(row, part.slot)))
        return pieces

    def _read(self, pieces: Pieces) -> list[Segment]:
        """Return the segments of what θ_τ reads, of pieces whose spaces have been moved."""
        if self._turns and pieces:
            pieces[0] = (pieces[0][0], self._turns.begin + pieces[0][1])
        if self._turns and pieces and pieces[-1][0] == "literal":
            pieces[-1] = ("literal", pieces[-1][1].rstrip())  # as templates do with what they are given
        return self._segments([piece for piece in pieces if piece[1]])

    def _fill_reasoning(self, reasoning: Reasoning | None, row: Row) -> list[Part]:
        """Return the parts of I_τ's template with its slot {reasoning} replaced by those of the variant."""
        side = self.instructions.answer_side
        parts = list(side.template.parts)
        slots = [part.slot for part in parts]
        wanted = set(USES[self.reasoning_use]) if reasoning else set()
        if "reasoning" not in slots:
            if wanted:
                raise UserError(
                    f"{self.instructions.source}: answer.template has no slot {{reasoning}}, but {place(row)} has "
                    f"reasoning; add the slot, or set reasoning_use to 'none'"
                )
            return parts
        given = {"rationale": reasoning.rationale, "answer": reasoning.answer} if reasoning else {}
        present = {name for name in wanted if given[name]}
        use = next(use for use, needed in USES.items() if set(needed) == present)
        filled = []
        for part in side.reasoning[use].parts:
            if part.slot == "rationale":
                part = Part(str(given["rationale"]), "reasoning")
            elif part.slot == "answer":
                part = Part(self.instructions.verbalise(given["answer"], strict=False), LARGE_ANSWER)
            filled.append(part)
        index = slots.index("reasoning")
        rest = parts[index + 1 :]
        opens_line = index == 0 or parts[index - 1].text.endswith("\n")
        if not filled and opens_line and rest and rest[0].text.startswith("\n"):
            rest[0] = Part(rest[0].text[1:])  # a line that held {reasoning} alone goes with it
        return [*parts[:index], *filled, *rest]

    def _segments(self, pieces: Pieces) -> list[Segment]:
        segments = []
        for n, (kind, text) in enumerate(pieces):
            start = n == 0 and (self._turns is None or self.tokenizer.starts_after(self._turns.opening))
            if kind in ("literal", "instructions"):
                key = (text, start)
                if key not in self._constant_ids:
                    self._constant_ids[key] = tuple(self.tokenizer.encode(text, start=start))
                ids = self._constant_ids[key]
            else:
                ids = tuple(self.tokenizer.encode(text, start=start))
            segments.append(Segment(kind, text, ids))
        if self._turns:
            around = (self._turns.opening, self._turns.between)
            opening, between = (Segment("chat", t, tuple(self.tokenizer.encode_template(t))) for t in around)
            return [segment for segment in (opening, *segments, between) if segment.ids]
        if self.tokenizer.bos_id is not None:
            segments.insert(0, self._token_segment("bos", self.tokenizer.bos_id))
        if self._apart:
            segments.append(self._token_segment("end", self.tokenizer.eos_id))
        return segments

    def _answer_segment(self, label: object, row: Row | None = None) -> Segment:
        words = self.instructions.verbalise(label)
        start = self._apart or (self._turns is not None and self.tokenizer.starts_after(self._turns.between))
        ids = self.tokenizer.encode(self._answer_space + words, start=start) if words else []
        if not ids:
            where = f"{place(row)}: " if row is not None else ""
            raise UserError(
                f"{where}the answer {label!r} has no tokens, so there is nothing to learn or to score; mend it"
            )
        return Segment("answer", self._answer_space + words, tuple(ids))

    def _token_segment(self, kind: str, token_id: int) -> Segment:
        return Segment(kind, self.tokenizer.token(token_id), (token_id,))

    def _fit(self, segments: list[Segment], room: int, row: Row) -> tuple[list[Segment], dict[str, int]]:
        """Cut the ends of the segments that may be cut, in the file's order, until inputs and `room` fit max_length."""
        dropped: dict[str, int] = {}
        excess = _count(segments) + room - self.max_length
        for name in self.instructions.answer_side.truncate:
            kind = name if name == "reasoning" else f"field:{name}"
            for n, segment in enumerate(segments):
                cut = min(len(segment.ids), excess)
                if segment.kind != kind or cut <= 0:
                    continue
                kept = segment.ids[: len(segment.ids) - cut]
                segments[n] = replace(segment, ids=kept, text=self.tokenizer.decode(kept))
                dropped[kind] = dropped.get(kind, 0) + cut
                excess -= cut
        if excess > 0:
            cuttable = ", ".join(self.instructions.answer_side.truncate) or "nothing"
            raise UserError(
                f"{place(row)}: {_count(segments)} input and {room} answer tokens do not fit max_length "
                f"{self.max_length}, with {cuttable} cut; raise max_length, or let `answer.truncate` in "
                f"{self.instructions.source} name what else may be cut"
            )
        return segments, dropped


def _count(segments: Iterable[Segment]) -> int:
    return sum(len(segment.ids) for segment in segments)


def _ids(segments: Iterable[Segment]) -> np.ndarray:
    return np.array([i for segment in segments for i in segment.ids], np.int32)
