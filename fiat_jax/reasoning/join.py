"""From stored records to the reasoning of each row, with the leak guard."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import place
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.tasks.task import Row, Task, row_key


@dataclass(frozen=True)
class Joined:
    """ŷ_β by row id. `excluded` are rows whose answer the prompt shows, `missing` rows without a record.

    `several` says that a vote chose between samples of some row.
    """

    reasoning: dict[str, Reasoning]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]
    several: bool = False


def join(
    task: Task,
    rows: Sequence[Row],
    store: ReasoningStore,
    set_key: str,
    exemplar_ids: Collection[str] = (),
    *,
    vote: bool = False,
    optional: Collection[str] = (),
    command: str | None = None,
) -> Joined:
    """Give each row its reasoning from one set: the first sample's, or by `vote` that of most samples' answer.

    A row is excluded where its id or its content is that of an exemplar of the prompt that produced the set, as the set
    itself records, or where its id is among `exemplar_ids`: θ_β saw its answer.

    Raises:
        UserError: rows without a record that are not among the ids `optional`, with their number and the `command` that
            makes them; or two rows of one id that differ.
    """
    provenance = store.provenance(set_key)
    shown_ids = {*exemplar_ids, *provenance.exemplar_ids}
    keys = _keys_by_id(task, rows)
    shown_rows = {*provenance.exemplar_rows, *(key for row_id, key in keys.items() if row_id in shown_ids)}
    samples = _samples(store, set_key, set(keys.values()), None if vote else 1)

    reasoning, excluded, missing = {}, [], []
    for row_id, key in keys.items():
        if key in shown_rows:
            excluded.append(row_id)
        elif key not in samples:
            missing.append(row_id)
        else:
            reasoning[row_id] = majority([one for _, one in sorted(samples[key].items())])
    needed = [row_id for row_id in missing if row_id not in optional]
    if needed:
        some = ", ".join(needed[:3]) + (", …" if len(needed) > 3 else "")
        raise UserError(
            f"{store.path}: set {set_key} has no reasoning for {len(needed)} of {len(keys)} rows of task {task.name} "
            f"({some}); make it with `{command or _command(provenance)}`"
        )
    several = any(len(found) > 1 for found in samples.values())
    return Joined(reasoning, tuple(excluded), tuple(missing), several)


def majority(samples: Sequence[Reasoning]) -> Reasoning:
    """Return the first of the samples that has the answer of most; of answers as frequent the one sampled first.

    Samples without an answer have no vote where another has one.
    """
    answers = Counter(sample.answer for sample in samples if sample.answer is not None)
    if not answers:
        return samples[0]
    most = max(answers.values())  # a Counter keeps the order in which answers were met
    answer = next(answer for answer, count in answers.items() if count == most)
    return next(sample for sample in samples if sample.answer == answer)


def _keys_by_id(task: Task, rows: Sequence[Row]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for row in rows:
        row_id, key = str(row[task.id_field]), row_key(task, row)
        if keys.setdefault(row_id, key) != key:
            raise UserError(
                f"{place(row)}: another row of task {task.name} has the id {row_id!r} and differs, and reasoning goes "
                "to a row by its id: make ids differ between splits too, or set Task.id_field='line'"
            )
    return keys


def _samples(
    store: ReasoningStore, set_key: str, keys: Collection[str], most: int | None
) -> dict[str, dict[int, Reasoning]]:
    """Return the samples of rows by their number, of which the first `most` alone."""
    found: dict[str, dict[int, Reasoning]] = {}
    for record in store.records(set_key):
        if record.row in keys and (most is None or record.sample < most):
            found.setdefault(record.row, {})[record.sample] = Reasoning(record.rationale, record.answer)
    return found


def _command(provenance: Provenance) -> str:
    if provenance.source == "imported":
        return "fiat reason --import FILE"
    return "fiat reason --backend=openai"
