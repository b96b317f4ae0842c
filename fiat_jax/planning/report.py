"""A plan as tables on the console: the same figures as in results.json."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fiat_jax.planning.roofline import FORMULA
from fiat_jax.planning.search import Candidate

GIB = 2**30
SHOWN = 12  # collectives of a program; results.json has all of them
SMALL = 1 << 20  # bytes that leave a device, below which a collective is not shown


def show(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan: what it takes, what it exchanges, how fast it could be, what to look at."""
    target = plan["target"]
    mesh = ", ".join(f"{name} {size}" for name, size in target["mesh"].items())
    console.print(f"{plan['kind']} {plan['model']} on {target['topology']}, {target['devices']} devices, mesh {mesh}")
    console.print(f"attention without a cache: {plan['attention']}")
    console.print(_memory(plan))
    counted = {name: one for name, one in plan["programs"].items() if "flops" in one}
    if counted:
        console.print(_time(counted))
    for name, program in counted.items():
        _say(console, *_exchanged(name, program))
    for name, program in plan["programs"].items():
        _print_refusal(name, program, target["memory"], console)
    _say(console, *_verdict(plan))
    for line in dict.fromkeys(line for program in plan["programs"].values() for line in program["cautions"]):
        _say(console, f"warning: {line}")
    assumed = {key: count for program in counted.values() for key, count in program["assumed_loops"].items()}
    for name, count in assumed.items():
        _say(console, f"assumed: {name} runs {count:g} times")
    if counted and target["chip"]:
        _say(console, FORMULA, f"peaks: {target['chip']['source']}", plan["formula"])


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _memory(plan: Mapping[str, Any]) -> Table:
    memory = plan["target"]["memory"]
    table = Table(title="GiB a device" + (f", of {memory / GIB:.2f}" if memory else ""))
    for name in (
        "program",
        "arguments",
        "temporaries",
        "output",
        "of it in place",
        "code",
        "together",
        "share",
        "fits",
    ):
        table.add_column(name, justify="left" if name == "program" else "right")
    for name, program in plan["programs"].items():
        held = program["memory"]
        sizes = [held[key] / GIB for key in ("arguments", "temporaries", "output", "aliased", "code", "total")]
        share = "" if program["of_memory"] is None else f"{program['of_memory']:.0%}"
        fits = {True: "yes", False: "NO", None: "not known"}[program["fits"]]
        table.add_row(name, *(f"{size:.2f}" for size in sizes), share, fits)
    return table


def _time(programs: Mapping[str, Any]) -> Table:
    table = Table(title="one run of each program, on each device")
    for name in ("program", "TFLOP", "GB of memory", "GB sent", "compute", "memory", "network", "bound by"):
        table.add_column(name, justify="left" if name in ("program", "bound by") else "right")
    for name, one in programs.items():
        sent = sum(collective["bytes"] for collective in one["collectives"])
        line = one.get("roofline")
        times = [_seconds(line[key]) for key in ("compute", "memory", "network")] if line else ["", "", ""]
        amounts = [f"{one['flops'] / 1e12:.3g}", f"{one['bytes'] / 1e9:.3g}", f"{sent / 1e9:.3g}"]
        table.add_row(name, *amounts, *times, line["bound"] if line else "no published peaks")
    return table


def _exchanged(name: str, program: Mapping[str, Any]) -> list[str]:
    """Return a line for each of the larger collectives."""
    shown = [one for one in program["collectives"] if one["bytes"] >= SMALL]
    lines = [f"{name}: what leaves a device" if shown else f"{name}: nothing of size leaves a device"]
    for one in shown[:SHOWN]:
        along, where = "/".join(one["axes"]) or "no axis", f" ({one['op_name'][-60:]})" if one["op_name"] else ""
        times = f"{one['count']:,.0f} x {one['array']}"
        lines.append(f"  {one['bytes'] / 1e6:,.1f} MB {one['kind']} along {along}: {times}{where}")
    rest = shown[SHOWN:]
    if rest:
        lines.append(f"  {sum(one['bytes'] for one in rest) / 1e6:,.1f} MB {len(rest)} others")
    return lines


def _print_refusal(name: str, program: Mapping[str, Any], memory: int | None, console: Console) -> None:
    if not program["refused"]:
        return
    over = "" if memory is None else f" by {(program['memory']['total'] - memory) / GIB:.2f} GiB"
    _say(console, f"{name} does not fit{over}: {program['refused']}")
    for size, array in program["largest"]:
        _say(console, f"  {size / GIB:.2f} GiB {array}")


def _verdict(plan: Mapping[str, Any]) -> list[str]:
    """Return whether it fits and by how much, and how fast it could be."""
    memory, programs = plan["target"]["memory"], plan["programs"].values()
    most = max((one["memory"]["total"] for one in programs), default=0) + plan.get("kept_besides", 0)
    lines = []
    if memory is not None:
        left = (memory - most) / GIB
        word = "fits" if plan["fits"] else "does not fit"
        how = f"{left:.2f} GiB a device are left" if left >= 0 else f"{-left:.2f} GiB a device too much"
        lines.append(f"{word}: {most / GIB:.2f} of {memory / GIB:.2f} GiB ({most / memory:.0%}); {how}")
    if plan["tokens_per_second"] is not None:
        rate = f"at the roofline: {plan['tokens_per_second']:,.0f} tokens/s"
        rate += f", MFU {plan['mfu']:.1%}" if plan["mfu"] is not None else ""
        if plan.get("rows_per_hour"):
            rate += f", {plan['rows_per_hour']:,.0f} rows an hour"
        lines.append(rate)
    if plan.get("computed_over_useful"):
        lines.append(f"computed: {plan['computed_over_useful']:.2f} times the useful operations")
    return lines


def show_search(found: list[Candidate], console: Console) -> None:
    """Print the meshes, the best first."""
    table = Table(title="meshes, the fastest that fits first")
    for name in ("data", "fsdp", "tensor", "fits", "share", "seconds", "bound by", "tokens/s", "MFU", ""):
        table.add_column(name, justify="left" if name in ("bound by", "") else "right")
    for one in found:
        sizes = [str(size) for size in (one.mesh.data, one.mesh.fsdp, one.mesh.tensor)]
        if one.found is None:
            table.add_row(*sizes, "-", "", "", "", "", "", one.why_not)
            continue
        programs = one.found["programs"].values()
        share = max(program["of_memory"] or 0 for program in programs)
        line = next(
            (p["roofline"] for n, p in one.found["programs"].items() if n in ("step", "decode") and "roofline" in p),
            None,
        )
        table.add_row(
            *sizes,
            {True: "yes", False: "NO", None: "?"}[one.found["fits"]],
            f"{share:.0%}",
            _seconds(line["seconds"]) if line else "",
            line["bound"] if line else "",
            f"{one.found['tokens_per_second']:,.0f}" if one.found["tokens_per_second"] else "",
            f"{one.found['mfu']:.1%}" if one.found["mfu"] else "",
            "",
        )
    console.print(table)


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"
