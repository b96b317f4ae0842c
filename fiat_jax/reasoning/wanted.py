"""A request that the store lacks the answer of, and the record that an answer becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.instructions import Instructions
from fiat_jax.reasoning.backend import FAILED, Completion, Refused
from fiat_jax.store import Provenance, ReasoningStore, Record, sampling_seed
from fiat_jax.tasks.task import Row, Task, row_key


@dataclass(frozen=True)
class Wanted:
    """A request: the row, its content hash, which sample of it, and its id for people."""

    key: str
    sample: int
    row: Row
    row_id: str


@dataclass(frozen=True)
class Quarantined:
    """A request that got no usable answer, and why; `bucket` is the kind of reason (see `backend`)."""

    row_id: str
    sample: int
    reason: str
    bucket: str = FAILED


@dataclass(frozen=True)
class Plan:
    """What a set is made from, the content hashes of the rows that it is wanted for, and the requests that are missing.

    `wanted` counts all requests, `samples` for each row.
    """

    provenance: Provenance
    keys: frozenset[str]
    samples: int
    missing: tuple[Wanted, ...]

    @property
    def wanted(self) -> int:
        """How many requests it takes, with those that are stored."""
        return len(self.keys) * self.samples


def provenance_of(task: Task, instructions: Instructions, identity: Mapping[str, object]) -> Provenance:
    """What a set generated with these instructions by this model is made from."""
    side = instructions.reasoning
    exemplars = [exemplar for exemplars in side.exemplars.sets.values() for exemplar in exemplars]
    shown = [exemplar.row for exemplar in exemplars if exemplar.row is not None]
    return Provenance(
        model=identity,
        prompt_hash=instructions.reasoning_hash,
        decoding=side.decoding,
        exemplar_ids=tuple(instructions.exemplar_ids),
        exemplar_rows=tuple(row_key(task, row) for row in shown if all(name in row for name in task.fields)),
    )


def make_plan(task: Task, rows: Sequence[Row], store: ReasoningStore, provenance: Provenance, samples: int) -> Plan:
    """Return what the store lacks of `samples` of each row; rows of equal content are one.

    Raises:
        UserError: several samples are asked of a decoding without chance.
    """
    if samples > 1 and not provenance.decoding.get("temperature"):
        raise UserError(f"{samples} samples of a row are all the same at temperature 0; set decoding.temperature")
    by_key: dict[str, Row] = {}
    for row in rows:
        by_key.setdefault(row_key(task, row), row)
    keys = store.missing(provenance.set_key, list(by_key), samples)
    missing = (Wanted(key, sample, by_key[key], str(by_key[key][task.id_field])) for key, sample in keys)
    return Plan(provenance, frozenset(by_key), samples, tuple(missing))


def seed_of(want: Wanted, provenance: Provenance) -> int | None:
    """A seed from the record's key, so that a row's sample is the same in every order; None for greedy decoding."""
    if not provenance.decoding.get("temperature"):
        return None
    return sampling_seed(provenance.set_key, want.key, want.sample)


def to_record(want: Wanted, completion: Completion, provenance: Provenance, instructions: Instructions) -> Record:
    """Return what is stored of an answer; raises Refused where it holds no text."""
    if not completion.text.strip():
        reason = f"the completion is empty (finish reason {completion.finish_reason})"
        raise Refused(reason, completion=completion)
    found = instructions.extract(completion.text)
    return Record(
        set=provenance.set_key,
        row=want.key,
        sample=want.sample,
        row_id=want.row_id,
        text=completion.text,
        rationale=found.rationale,
        answer=found.answer,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        seed=None if "seed" in completion.left_out else seed_of(want, provenance),
        served_by=completion.served_by,
        cached_tokens=completion.cached_tokens,
        hidden_tokens=completion.hidden_tokens,
    )
