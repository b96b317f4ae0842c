"""`fiat reason verify`: every byte of a store is read again."""

from rich.console import Console
from rich.table import Table

from fiat_jax.store import ReasoningStore


def verify(path: str, console: Console) -> bool:
    """Print what each set holds and what is wrong with it; return whether nothing is damaged."""
    store, table, problems = ReasoningStore(path), Table(title=f"{path}, read again"), []
    for name in ("set", "from", "model", "files", "records", "damage"):
        table.add_column(name, justify="right" if name in ("files", "records", "damage") else "left")
    for one in store.inspect():
        damage = [problem for problem in one.problems if problem.damage]
        problems += one.problems
        source = one.provenance.source if one.provenance else "?"
        model = str(one.provenance.model.get("name", "")) if one.provenance else "?"
        table.add_row(one.set_key, source, model, f"{one.files:,}", f"{one.records:,}", f"{len(damage):,}")
    if not table.row_count:
        console.print(f"{path}: no set of reasoning there", highlight=False)
    for problem in problems:
        console.print(f"{'' if problem.damage else 'no damage: '}{problem}", highlight=False, markup=False)
    if table.row_count:
        console.print(table)
    return not any(problem.damage for problem in problems)
