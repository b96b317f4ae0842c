"""From stored records to the reasoning of each row, with the leak guard."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.tasks.task import Row, Task, row_key


@dataclass(frozen=True)
class Joined:
    """ŷ_β by row id. `excluded` are rows whose answer the prompt shows, `missing` rows without a record."""

    reasoning: dict[str, Reasoning]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]


def join(
    task: Task,
    rows: Sequence[Row],
    store: ReasoningStore,
    set_key: str,
    exemplar_ids: Collection[str] = (),
    *,
    sample: int = 0,
    allow_missing: bool = False,
    command: str | None = None,
) -> Joined:
    """Give each row its reasoning from one set.

    A row is excluded where its id or its content is that of an exemplar of the prompt that produced the set, as the set
    itself records, or where its id is among `exemplar_ids`: θ_β saw its answer.

    Raises:
        UserError: rows without a record, unless `allow_missing`; says how many and the `command` that makes them.
    """
    provenance = store.provenance(set_key)
    records = store.lookup(set_key)
    shown_ids = {*exemplar_ids, *provenance.exemplar_ids}
    keys = {str(row[task.id_field]): row_key(task, row) for row in rows}
    shown_rows = {*provenance.exemplar_rows, *(key for row_id, key in keys.items() if row_id in shown_ids)}

    reasoning, excluded, missing = {}, [], []
    for row_id, key in keys.items():
        record = records.get((key, sample))
        if key in shown_rows:
            excluded.append(row_id)
        elif record is None:
            missing.append(row_id)
        else:
            reasoning[row_id] = Reasoning(record.rationale, record.answer)
    if missing and not allow_missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{store.path}: set {set_key} has no reasoning for {len(missing)} of {len(keys)} rows of task {task.name} "
            f"({some}); make it with `{command or _command(provenance)}`"
        )
    return Joined(reasoning, tuple(excluded), tuple(missing))


def _command(provenance: Provenance) -> str:
    if provenance.source == "imported":
        return "fiat reason --import FILE"
    return "fiat reason --backend=openai"
