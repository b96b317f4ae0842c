"""A report put together of one run or two, and written as the name of the file says."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fiat_jax.errors import UserError
from fiat_jax.experiments.report import origin, reasoning, scores, texts, training
from fiat_jax.experiments.report.content import LeftOut, Report, Section
from fiat_jax.experiments.report.ladder import ladder
from fiat_jax.experiments.report.page import as_html
from fiat_jax.experiments.report.read import Finished, read_run
from fiat_jax.experiments.report.training import Rates

MOST_ROWS = 1000  # rows to browse: a page of some MB
FORMS: dict[str, Callable[[Report], str]] = {
    ".html": as_html, ".md": texts.as_markdown, ".json": texts.as_json, ".tex": texts.as_latex
}  # fmt: skip


def write_report(workdirs: Sequence[Path], outputs: Sequence[Path], rates: Rates, most_rows: int = MOST_ROWS) -> Report:
    """Read one run, or two to compare, and write the report to every output; return it.

    Raises:
        UserError: a suffix that is no form, more than two runs, or a run that cannot be read; nothing is written then.
    """
    for output in outputs:
        if output.suffix not in FORMS:
            raise UserError(f"--out={output}: the name ends in {', '.join(FORMS)}, which says what is written")
    if len(workdirs) > 2:
        raise UserError(f"a report is of one run, or of two to compare; {len(workdirs)} were named")
    if most_rows < 1:
        raise UserError(f"--rows={most_rows}: show one row at least")
    report = assemble(
        [read_run(path, name) for path, name in zip(workdirs, _names(workdirs), strict=True)], rates, most_rows
    )
    written = [FORMS[output.suffix](report) for output in outputs]
    for output, text in zip(outputs, written, strict=True):
        output.parent.mkdir(parents=True, exist_ok=True)
        # half an emoji, of a text that was cut, has no bytes; as an escape it is still JSON within a page
        output.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    return report


def assemble(runs: Sequence[Finished], rates: Rates, most_rows: int) -> Report:
    """Return the report: of two runs what sets them apart comes first, and the rest is of the second."""
    run = runs[-1]
    found: list[Section | LeftOut] = [origin.versus(*runs)] if len(runs) == 2 else []
    found += [
        scores.table(run),
        ladder(run),
        scores.languages(run),
        scores.sizes(run),
        reasoning.gains(run),
        reasoning.two_by_two(run, most_rows),
        reasoning.audit(run),
        reasoning.instructions(runs),
        training.curves(run),
        scores.calibrations(run),
        training.cost(run, rates),
        origin.origin(run),
    ]
    tasks = ", ".join(dict.fromkeys(row["task"] for row in run.systems))
    subtitle = f"{run.results['verb']} · {' against '.join(one.name for one in reversed(runs))}"
    return Report(
        f"{tasks}: {len({scores.label(run, row) for row in run.systems})} systems", subtitle,
        [one for one in found if isinstance(one, Section)], [one for one in found if isinstance(one, LeftOut)],
    )  # fmt: skip


def _names(workdirs: Sequence[Path]) -> list[str]:
    """Return short names that differ: the last part of each path, with its parent where those are the same."""
    names = [path.resolve().name for path in workdirs]
    if len(set(names)) < len(names):
        names = ["/".join(path.resolve().parts[-2:]) for path in workdirs]
    return names if len(set(names)) == len(names) else [str(path) for path in workdirs]
