"""Text to token ids and back, exactly, for text that is tokenised piece by piece."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from fiat_jax.errors import UserError
from fiat_jax.prompts.chat import read_template
from fiat_jax.prompts.sentencepiece import read_sentencepiece
from fiat_jax.remote import fetched

SPACES = "▁Ġ "  # how vocabularies spell a space
# these split at white space before any prefix is added
PREFIX_FREE = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer")
T5_SPLITS = ["WhitespaceSplit", "Metaspace"]  # words, each with a space before it
FOLD = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}


class Tokenizer:
    """A `tokenizers` file that encodes a piece of text as it stands within a longer text.

    `encode` adds no special token and no leading space, so that ids of neighbouring pieces can be joined;
    `encode(text, start=True)` adds the leading space that the tokenizer itself puts before the first word of a text.
    `decode(encode(text)) == text` wherever the tokenizer's own normalisation loses nothing.
    `folds_spaces`: any white space between words is one space to it, as for T5; ids then hold none at a text's end.
    `unknown_id` is what characters become that it cannot spell, where it has a token for them.
    `spaces_lead` says whether most of its words begin with their space (" word", the rule) or end with it ("word ").
    `start_id` is the token behind which an encoder-decoder writes; None: the checkpoint's model is a decoder.
    `bos_id` is None unless the tokenizer begins its texts with it; `pad_id` may be the id of a real token.
    `chat_template` is the Jinja source of its chat template, or None; `special_tokens` are those it may name.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        bos: str | None,
        eos: str | int,
        pad: str | None,
        begin: bool | None,
        start_id: int | None = None,
        chat_template: str | None = None,
        source: str = "the tokenizer",
    ):
        """Take a parsed tokenizer.json; `begin`: whether texts begin with `bos` (None: as the post-processor does)."""
        original = tokenizers.Tokenizer.from_str(json.dumps({**spec, "truncation": None, "padding": None}))
        ids = original.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.spaces_lead = _spaces_lead(ids)
        self.eos_id = eos if isinstance(eos, int) else _id_of(eos, ids, "eos_token")
        self.pad_id = 0 if pad is None else _id_of(pad, ids, "pad_token")
        bos_id = None if bos is None else _id_of(bos, ids, "bos_token")
        begins = original.encode("a").ids[:1] == [bos_id] if begin is None else begin
        self.bos_id = bos_id if begins else None

        splits = [part["type"] for part in _members(spec.get("pre_tokenizer"), "pretokenizers")]
        self.folds_spaces = splits == T5_SPLITS
        pieces, self._leading_space = _as_pieces(_folding(spec) if self.folds_spaces else spec)
        self.start_id = start_id
        self.chat_template, self.source = chat_template, source
        self.special_tokens = {"bos_token": bos or "", "eos_token": original.id_to_token(self.eos_id) or ""}
        self._pieces, self._whole = pieces, original
        self._special = {t["id"] for t in pieces.get("added_tokens", []) if t["special"]} | {self.eos_id}
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(pieces))
        self._backend.encode_special_tokens = True  # "</s>" in a user's text is five characters
        self._silent = {self.eos_id, self.bos_id} - {None}
        unknown = _unknown(spec["model"])
        self.unknown_id = None if unknown is None else ids.get(unknown)
        self._control = _control_tokens(pieces, self._silent, original)
        self._spelled = re.compile("|".join(re.escape(text) for text in self._control.values()), re.IGNORECASE)
        apart = () if start_id is None else (start_id,)
        self.fingerprint = _fingerprint(pieces, self._leading_space, self.bos_id, self.eos_id, self.pad_id, *apart)

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(json.dumps(self._pieces))

    @cached_property
    def _leads_after_special(self) -> bool:
        """Whether a word behind a special token has a space put before it, as old SentencePiece vocabularies do."""
        behind = self._whole.encode(f"{self.token(self.eos_id)}a", add_special_tokens=False).ids[1:]
        return behind == self._ids(" a") != self._ids("a")

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """Read tokenizer.json or a SentencePiece file, and what other files say of its tokens."""
        root = fetched(path)
        config = {**_read_json(root / "special_tokens_map.json"), **_read_json(root / "tokenizer_config.json")}
        if (root / "tokenizer.json").is_file():
            spec = _read_json(root / "tokenizer.json")
        else:
            spec, named = read_sentencepiece(root)
            config = {**named, **config}
        eos = _content(config.get("eos_token"))
        if eos is None:
            eos = _eos_id(root)
        return cls(
            spec,
            bos=_content(config.get("bos_token")),
            eos=eos,
            pad=_content(config.get("pad_token")),
            begin=config.get("add_bos_token"),
            start_id=_start_id(root),
            chat_template=read_template(root, config),
            source=str(root),
        )

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return the ids of `text`; a special token that the text spells out becomes ordinary tokens."""
        if start and text and self._leading_space and not text.startswith(" "):
            text = f" {text}"
        ids = self._ids(text)
        if not self._control or self._control.keys().isdisjoint(ids):
            return ids
        # Unigram and word-level vocabularies list special tokens as words: each spelling is cut into characters
        ids, end = [], 0
        for match in self._spelled.finditer(text):
            ids += self._ids(text[end : match.start()])
            ids += [i for character in match.group() for i in self._ids(character)]
            end = match.end()
        ids += self._ids(text[end:])
        if not self._control.keys().isdisjoint(ids):
            raise UserError(f"the text {text[:60]!r} contains a special token of the tokenizer; remove it")
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a chat template's own text, in which special tokens are what they spell."""
        found = self._with_special.encode(text, add_special_tokens=False)
        first = next((n for n, token in enumerate(found.ids) if token in self._special), len(found.ids))
        if first == len(found.ids) or not self._leads_after_special:
            return found.ids
        start = found.offsets[first][0]  # what stands before it goes on from other text, and has no space put before it
        return found.ids[:first] + self._whole.encode(text[start:], add_special_tokens=False).ids

    def starts_after(self, text: str) -> bool:
        """Whether what follows this text of a chat template is the start of a text, as `encode` has it."""
        ids = self.encode_template(text)
        return self._leads_after_special and bool(ids) and self.is_special(ids[-1])

    def is_special(self, token_id: int) -> bool:
        """Whether a token is one that the tokenizer sets apart from text."""
        return token_id in self._special

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without its special tokens, and with its leading space where it has one."""
        return self._backend.decode([int(i) for i in ids if int(i) not in self._silent], skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """Return how the vocabulary spells one id, for showing it to a person."""
        return self._backend.id_to_token(token_id) or f"<{token_id}>"

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids if text else []


def _as_pieces(spec: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the specification without dummy leading space, cutting and padding, and whether it had that space."""
    spec = copy.deepcopy(dict(spec)) | {"truncation": None, "padding": None}
    found = False
    normalizers = _members(spec.get("normalizer"), "normalizers")
    kept = [n for n in normalizers if not (n["type"] == "Prepend" and n["prepend"] == "▁")]
    if len(kept) < len(normalizers):
        found = True
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}

    pre_tokenizers = _members(spec.get("pre_tokenizer"), "pretokenizers")
    if not any(p["type"] in PREFIX_FREE for p in pre_tokenizers):
        for part in pre_tokenizers:
            found |= _drop_prefix(part)

    if found:
        decoders = _members(spec.get("decoder"), "decoders")
        for part in decoders:
            _drop_prefix(part)
        kept = [d for d in decoders if not (d["type"] == "Strip" and d["content"] == " ")]
        spec["decoder"] = {"type": "Sequence", "decoders": kept} if kept else None
    return spec, found


def _folding(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification with the same words found by folding white space, so that a word may be cut in two."""
    normalizers = [*_members(spec.get("normalizer"), "normalizers"), FOLD]
    (_, metaspace) = _members(spec.get("pre_tokenizer"), "pretokenizers")
    return {**spec, "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": metaspace}


def _drop_prefix(part: dict[str, Any]) -> bool:
    if part["type"] == "ByteLevel":
        had = part.get("add_prefix_space", True)
        part["add_prefix_space"] = False
        return had
    if part["type"] == "Metaspace":
        had = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"
        part.pop("add_prefix_space", None)
        part["prepend_scheme"] = "never"
        return had
    return False


def _members(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]


def _spaces_lead(words: Iterable[str]) -> bool:
    words = [word for word in words if len(word) > 1]
    return sum(word[0] in SPACES for word in words) >= sum(word[-1] in SPACES for word in words)


def _control_tokens(spec: Mapping[str, Any], silent: set[Any], backend: tokenizers.Tokenizer) -> dict[int, str]:
    special = {t["id"]: t["content"] for t in spec.get("added_tokens", []) if t["special"]}
    special |= {i: backend.id_to_token(i) for i in silent}
    model = spec["model"]
    unknown = _unknown(model)
    # the unknown token is what rare characters honestly become; one character cannot be cut
    return {i: text for i, text in special.items() if text and len(text) > 1 and text != unknown}


def _unknown(model: Mapping[str, Any]) -> str | None:
    if model.get("unk_token") is not None:
        return model["unk_token"]
    return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]


def _fingerprint(spec: Mapping[str, Any], leading_space: bool, *ids: int | None) -> str:
    parts = [spec.get("model"), spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("added_tokens")]
    text = json.dumps([*parts, leading_space, ids], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _id_of(content: str, ids: Mapping[str, int], name: str) -> int:
    if content not in ids:
        raise UserError(f"tokenizer_config.json names {name} {content!r}, which tokenizer.json does not contain")
    return ids[content]


def _eos_id(root: Path) -> int:
    for name in ("generation_config.json", "config.json"):
        eos = _read_json(root / name).get("eos_token_id")
        if eos is not None:
            return eos[0] if isinstance(eos, list) else eos
    raise UserError(f"{root} names no end token; add eos_token to {root / 'tokenizer_config.json'}")


def _start_id(root: Path) -> int | None:
    """Return what config.json says an encoder-decoder writes behind, as transformers reads it."""
    model = _read_json(root / "config.json")
    if not model.get("is_encoder_decoder"):
        return None
    start = model.get("decoder_start_token_id")
    return model.get("pad_token_id") or 0 if start is None else start


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); fetch it again") from None
