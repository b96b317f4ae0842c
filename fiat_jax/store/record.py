"""One stored piece of reasoning, what produced it, and the line of text that holds it."""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fiat_jax.errors import UserError

_PREFIX = b'{"crc32":"'  # a fixed width head, so that the checksum covers raw bytes and the line stays plain JSON
_BODY_AT = len(_PREFIX) + len(b'01234567",')


@dataclass(frozen=True)
class Record:
    """ŷ_β for one row and one sample.

    `text` is the raw completion (or the imported reasoning), `rationale` and `answer` what was extracted from it;
    `answer` is None where none was found. `row` is the hash of the row's input fields, `row_id` its name in the task.
    `served_by` is what the endpoint said it answered with, `cached_tokens` those of the prompt that it had read before,
    `hidden_tokens` those of reasoning that it wrote and did not show.
    """

    set: str
    row: str
    sample: int
    row_id: str
    text: str
    rationale: str
    answer: str | None
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seed: int | None = None
    served_by: str | None = None
    cached_tokens: int | None = None
    hidden_tokens: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        """(row, sample): what a record is looked up by within its set."""
        return self.row, self.sample


@dataclass(frozen=True)
class Provenance:
    """What produced a set of records; equal provenance means the same set.

    `model` identifies θ_β: a weights fingerprint, or a declared name and revision with what the endpoint reports,
    never a URL. `exemplar_ids` are the rows whose answers the prompt shows, `exemplar_rows` the hashes of their input
    fields: the leak guard of the join reads both.
    """

    model: Mapping[str, object]
    prompt_hash: str = ""
    decoding: Mapping[str, object] = field(default_factory=dict)
    source: str = "generated"
    mapping: Mapping[str, str] = field(default_factory=dict)
    exemplar_ids: tuple[str, ...] = ()
    exemplar_rows: tuple[str, ...] = ()

    def __post_init__(self):
        if self.source not in ("generated", "imported"):
            raise ValueError(f"source is {self.source!r}; expected 'generated' or 'imported'")
        if any(isinstance(value, str) and value.startswith(("http://", "https://")) for value in self.model.values()):
            raise UserError(f"a model is identified by name and revision, not by a URL: {dict(self.model)}")
        for name in ("exemplar_ids", "exemplar_rows"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    @functools.cached_property
    def set_key(self) -> str:
        """The name of the set: 16 hexadecimal digits of the SHA-256 of everything above."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """Canonical JSON: the same bytes for equal provenance."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Provenance":
        """The inverse of `to_json`."""
        return cls(**json.loads(data))


def sampling_seed(set_key: str, row: str, sample: int) -> int:
    """Return the seed with which a record is sampled: of its key alone, so that order and company do not matter."""
    digest = hashlib.sha256(f"{set_key}/{row}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def encode_line(record: Record) -> bytes:
    """One line of JSON with its checksum first, newline included."""
    fields = dataclasses.asdict(record)
    try:
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half an emoji: a completion cut in the middle of a surrogate pair
        body = json.dumps(fields, separators=(",", ":")).encode()
    return b'%s%08x",%s\n' % (_PREFIX, zlib.crc32(body), body[1:])


def decode_line(line: bytes) -> Record:
    """The record of one line without its newline; ValueError says what is wrong with it."""
    body = b"{" + line[_BODY_AT:]
    if line[: len(_PREFIX)] != _PREFIX or line[len(_PREFIX) : _BODY_AT] != b'%08x",' % zlib.crc32(body):
        raise ValueError("checksum does not match")
    try:
        return Record(**json.loads(body))
    except TypeError as error:
        raise ValueError(f"not a record of this version ({error})") from None
