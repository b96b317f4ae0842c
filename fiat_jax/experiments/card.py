"""The card of a reasoning set: what it holds, how well θ_β's answers agree with the labels, and where it is from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiat_jax import __version__
from fiat_jax.experiments.feed import agreement
from fiat_jax.experiments.files import ALL, write_json
from fiat_jax.reasoning.card import Tally
from fiat_jax.reasoning.cost import Prices, money
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.tasks.task import Row, Task, row_key

SCHEMA = 1


def make_card(
    task: Task, rows: Sequence[Row], store: ReasoningStore, set_key: str, *, vote: bool, prices: Prices | None
) -> dict[str, Any]:
    """Return the card of a whole set; `rows` are those whose labels its answers are compared with."""
    tally = Tally.of(store.records(set_key))
    provenance, about = store.provenance(set_key), store.backend(set_key) or {}
    return {
        "schema": SCHEMA,
        "set": set_key,
        "task": task.name,
        **tally.figures(prices),
        "agreement": _agreement(task, rows, tally.answers(vote), provenance),
        "agreement_by_vote": vote,
        "provenance": dataclasses.asdict(provenance),
        "asked": about,
        "dropped": list(about.get("dropped", ())),
        "versions": {"fiat-jax": __version__},
    }


def _agreement(
    task: Task, rows: Sequence[Row], answers: Mapping[str, str | None], provenance: Provenance
) -> dict[str, dict[str, float | int]]:
    """Return per cent and number of rows for each language and for all rows together; no answer counts as wrong.

    Rows whose answer the prompt shows are left out, by the content of exemplars as by their id.
    """
    shown = {*provenance.exemplar_rows}
    shown |= {row_key(task, row) for row in rows if row[task.id_field] in provenance.exemplar_ids}
    keyed = [(row_key(task, row), row) for row in rows if row.get(task.answer_field) is not None]
    compared = [(row, answers[key]) for key, row in keyed if key in answers and key not in shown]
    if not compared:
        return {}
    values = agreement(task, [row[task.answer_field] for row, _ in compared], [answer for _, answer in compared])
    groups: dict[str, list[float]] = {}
    for (row, _), value in zip(compared, values.tolist(), strict=True):
        groups.setdefault(task.language(row), []).append(value)
    named = {**{name: groups[name] for name in sorted(groups)}, ALL: values.tolist()}
    return {name: {"value": round(100 * sum(one) / len(one), 4), "n": len(one)} for name, one in named.items()}


def write_card(workdir: Path, card: Mapping[str, Any]) -> Path:
    """Write WORKDIR/card.json and card.md; return the latter."""
    write_json(workdir / "card.json", card)
    path = workdir / "card.md"
    path.write_text(_as_page(card), "utf-8", errors="backslashreplace")
    return path


def agreement_line(card: Mapping[str, Any]) -> str:
    """Return the agreement with the labels in one line, or that there is nothing to compare."""
    found = card["agreement"]
    if not found:
        return "no stored row has a label to compare θ_β's answers with"
    languages = [f"{name} {one['value']:.1f}" for name, one in found.items() if name != ALL]
    each = f" ({', '.join(languages)})" if len(languages) > 1 else ""
    how = " by vote" if card["agreement_by_vote"] else ""
    return f"θ_β's answers{how} agree with the labels in {found[ALL]['value']:.1f}% of {found[ALL]['n']:,} rows{each}"


def _as_page(card: Mapping[str, Any]) -> str:
    provenance, lengths = card["provenance"], ("prompt_tokens", "answer_tokens")
    model = ", ".join(f"{name} {value}" for name, value in provenance["model"].items() if value)
    facts = [
        ("rows", f"{card['rows']:,}"),
        ("records", f"{card['records']:,}"),
        *((f"{name.replace('_', ' ')}", _share(card[name])) for name in ("cut_short", "without_an_answer")),
        ("with hidden reasoning", _share(card["with_hidden_reasoning"])),
        *((name.replace("_", " "), _spread(card[name])) for name in lengths),
        ("cached tokens", f"{card['cached_tokens']:,}"),
        ("cost", "–" if card["cost"] is None else money(card["cost"])),
        ("not taken by the endpoint", ", ".join(card["dropped"]) or "–"),
        ("made by", f"{provenance['source']}: {model}"),
        ("decoding", ", ".join(f"{name} {value}" for name, value in provenance["decoding"].items()) or "–"),
        ("prompt", f"`{provenance['prompt_hash'][:16]}`, {len(provenance['exemplar_rows'])} exemplars"),
        ("served by", ", ".join(f"{name} ({count:,})" for name, count in card["served_by"].items()) or "–"),
    ]
    languages = [(name, f"{one['value']:.1f} | {one['n']:,}") for name, one in card["agreement"].items()]
    return "\n".join(
        [
            f"# Reasoning for {card['task']}: set `{card['set']}`",
            "",
            f"{agreement_line(card)}.",
            "",
            "| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in facts),
            "",
            *(["| language | agreement, per cent | rows |\n|---|---|---|"] if languages else []),
            *(f"| {name} | {value} |" for name, value in languages),
            "",
        ]
    )


def _share(of: Mapping[str, float]) -> str:
    return f"{of['records']:,} ({of['share']:.1%})"


def _spread(lengths: Mapping[str, int] | None) -> str:
    if lengths is None:
        return "–"
    spread = f"{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,}, 95th per cent {lengths['p95']:,}"
    return f"{lengths['sum']:,} in all; {spread}"
