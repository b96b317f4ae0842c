"""Sections of training: learning curves from step 0, and what it all cost."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fiat_jax.experiments.files import ALL, paradigm_of
from fiat_jax.experiments.report import figures
from fiat_jax.experiments.report.content import DASH, Figure, LeftOut, Section, Table, count, number, signed, sized
from fiat_jax.experiments.report.measure import WITHOUT
from fiat_jax.experiments.report.read import Finished
from fiat_jax.experiments.report.scores import label
from fiat_jax.reasoning.cost import Prices, money

HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Rates:
    """Money: θ_β's prices, and that of an hour of all devices of the run; None: not told."""

    theta_beta: Prices | None = None
    device_hour: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything can be said in money."""
        return self.theta_beta is not None or self.device_hour is not None


def curves(run: Finished) -> Section | LeftOut:
    """Return the score on the selection rows over steps, step 0 included."""
    title, known = "Learning curves", {n: c for n, c in run.cells.items() if c.get("evaluations")}
    if not known:
        return LeftOut(title, "no cell was trained here")
    parts = []
    for size in dict.fromkeys(cell["size"] for cell in known.values()):
        cells = {name: cell for name, cell in known.items() if cell["size"] == size}
        metric = next(iter(next(iter(cells.values()))["evaluations"][0][1]))
        found = []
        for name in dict.fromkeys(label(run, cell) for cell in cells.values()):
            by_step: dict[int, list[float]] = {}
            for cell in cells.values():
                if label(run, cell) == name:
                    for step, values in cell["evaluations"]:
                        by_step.setdefault(step, []).append(values[metric])
            found.append(figures.Line(name, sorted(by_step), [float(np.mean(by_step[s])) for s in sorted(by_step)]))
        ends = "; ".join(f"{one.label} {number(one.y[0])} at step 0, at best {number(max(one.y))}" for one in found)
        told = f"{metric} on the selection rows over steps: {ends}."
        figure_id = f"curves-{size}"
        svg = figures.lines(figure_id, f"{title}, {sized(size)}", told, found, "step", f"{metric}, %")
        steps = sorted({step for one in found for step in one.x})
        at = [dict(zip(one.x, one.y, strict=True)) for one in found]
        rows = [[count(step), *(number(one.get(step)) for one in at)] for step in steps]
        records = [
            {"step": step, **{one.label: y.get(step) for one, y in zip(found, at, strict=True)}} for step in steps
        ]
        table = Table(f"Learning curves, {sized(size)}", ["step", *(one.label for one in found)], rows, records)
        parts.append(Figure(figure_id, sized(size), told, svg, table))
    rows = next(iter(known.values()))["rows_selected_on"]
    text = (
        f"Of the chosen learning rate, the mean of the seeds, on selection rows ({count(rows)} at the smallest size)."
    )
    return Section("curves", title, text, parts)


def cost(run: Finished, rates: Rates) -> Section | LeftOut:
    """Return θ_β's tokens, device seconds and money of every system, and what a point over the baseline cost."""
    title, trained = "Cost", [cell for cell in run.cells.values() if cell.get("seconds") is not None and cell["size"]]
    if not trained:
        return LeftOut(title, "no cell tells what its training took")
    metric = run.metrics[0]
    tokens, bills = run.results["inputs"].get("rows", {}).get("theta_beta_tokens", {}), []
    scores = {
        (label(run, row), row["size"]): row for row in run.systems if (row["metric"], row["language"]) == (metric, ALL)
    }
    for (name, size), row in scores.items():
        cells = [cell for cell in trained if (label(run, cell), cell["size"]) == (name, size)]
        if not cells and size:
            continue
        seconds = float(np.mean([cell["seconds"] for cell in cells])) if cells else 0.0
        read = _tokens(tokens, row, size or 0)
        bills.append({
            "system": name, "paradigm": row["paradigm"], "theta_tau": row["theta_tau"], "size": size,
            "value": row["value"], "theta_beta_tokens": sum(read[:2]) if read else None, "seconds": seconds,
            "money": _money(rates, read, seconds),
        })  # fmt: skip
    rows = []
    for bill in bills:
        base = _baseline(bills, bill)
        gain = bill["value"] - base["value"] if base else None
        bill |= {"baseline": base["system"] if base else None, "points": gain}
        bill["per_point"] = {
            what: (bill[what] - base[what]) / gain
            for what in ("theta_beta_tokens", "seconds", "money")
            if base and gain and gain > 0 and bill[what] is not None and base[what] is not None
        }
        row = [
            bill["system"],
            sized(bill["size"]),
            number(bill["value"]),
            count(bill["theta_beta_tokens"]),
            count(bill["seconds"]),
        ]
        row += [money(bill["money"]) if bill["money"] is not None else DASH] if rates.given else []
        per = bill["per_point"]
        row += [f"{signed(gain)} over {base['system']}" if base else DASH, _signed_count(per.get("theta_beta_tokens"))]
        row += [_signed_count(per.get("seconds"))]
        row += [f"{per['money']:+.4g}" if "money" in per else DASH] if rates.given else []
        rows.append(row)
    columns = ["system", "trained on", f"{metric}, %", "θ_β tokens", "device seconds"]
    columns += ["money"] if rates.given else []
    columns += ["points", "tokens per point", "seconds per point"] + (["money per point"] if rates.given else [])
    note = (
        "A seed's search over learning rates. θ_β's tokens: prompts and answers for the training rows and the reported "
        "rows, of a smaller size in proportion. Per point: what is spent beyond the baseline, over the points gained; "
        "below zero where the system gains and spends less."
    )
    devices = run.results["hardware"]
    text = f"On {count(devices['devices'])} × {devices['device']}."
    if not rates.given:
        text += (
            " For money give --price_prompt and --price_completion (a million tokens), --price_hour (of the devices)."
        )
    return Section("cost", title, text, [Table("Cost of a system", columns, rows, bills, note)])


def _tokens(by_split: Mapping[str, Any], row: Mapping[str, Any], size: int) -> tuple[float, float, float] | None:
    """Return prompt, completion and cached tokens for the rows of training and report; None: they are not known."""
    if row["theta_beta"] is None:
        return 0.0, 0.0, 0.0
    found = np.zeros(3)
    for split, told in by_split.items():
        if not told["counted"]:
            return None
        rows = told["rows"] if split == row["split"] else size
        each = (
            np.array([told[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]) / told["counted"]
        )
        found += each * rows
    return (float(found[0]), float(found[1]), float(found[2])) if by_split else None


def _money(rates: Rates, tokens: tuple[float, float, float] | None, seconds: float) -> float | None:
    if not rates.given or (rates.theta_beta and tokens is None):
        return None
    asked = rates.theta_beta.of(*map(round, tokens)) if rates.theta_beta and tokens else 0.0
    return asked + (rates.device_hour or 0.0) * seconds / HOUR


def _baseline(bills: list[dict[str, Any]], bill: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the first system without reasoning of the same size and θ_τ: what one would do without θ_β."""
    for name in reversed(WITHOUT[:2]):
        for other in bills:
            same = (other["size"], other["theta_tau"]) == (bill["size"], bill["theta_tau"])
            if paradigm_of(other["paradigm"]) == name and same and other is not bill:
                return other
    return None


def _signed_count(value: float | None) -> str:
    return signed(value, 0) if value is not None else DASH
