"""The tables of a report for other documents: Markdown, JSON, LaTeX."""

import json
import re
from collections.abc import Sequence
from typing import Any

from fiat_jax.experiments.report.content import Report, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "→": r"$\to$", "×": r"$\times$",
    "·": r"$\cdot$", "β": r"$\beta$", "θ": r"$\theta$", "τ": r"$\tau$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")


def as_markdown(report: Report) -> str:
    """Return all tables as Markdown's, with what is said of them."""
    lines = [f"# {_marked(report.title)}", "", _marked(report.subtitle), ""]
    for section in report.sections:
        if not section.tables and not section.text:  # figures alone
            continue
        lines += [f"## {_marked(section.title)}", "", *([_marked(section.text), ""] if section.text else [])]
        for table in section.tables:
            lines += [
                f"**{_marked(table.title)}**",
                "",
                _line(table.columns),
                _rule(table),
                *map(_line, table.rows),
                "",
            ]
            lines += [_marked(table.note), ""] if table.note else []
    if report.left_out:
        lines += ["## Left out", "", *(f"- {_marked(one.title)}: {_marked(one.reason)}" for one in report.left_out), ""]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Return all tables with their numbers, and what is said of them."""
    held: dict[str, Any] = {"title": report.title, "subtitle": report.subtitle, "sections": []}
    for section in report.sections:
        tables = [
            {"title": t.title, "columns": list(t.columns), "rows": [list(row) for row in t.rows]}
            | {"records": [dict(one) for one in t.records], "note": t.note}
            for t in section.tables
        ]
        held["sections"].append({"name": section.name, "title": section.title, "text": section.text, "tables": tables})
    held["left_out"] = [{"title": one.title, "reason": one.reason} for one in report.left_out]
    return json.dumps(held, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_latex(report: Report) -> str:
    r"""Return all tables, to be brought in by \input; they need the package booktabs."""
    lines = ["% Tables of `fiat report`; \\usepackage{booktabs}"]
    for section in report.sections:
        for number, table in enumerate(section.tables):
            columns = "l" + "r" * (len(table.columns) - 1)
            lines += ["", "\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
            lines += [_cells(table.columns), "\\midrule", *map(_cells, table.rows), "\\bottomrule", "\\end{tabular}"]
            told = ". ".join(text.rstrip(".") for text in (table.title, table.note) if text)
            lines += [f"\\caption{{{_escaped(told)}.}}", f"\\label{{tab:{section.name}-{number}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_marked(cell) for cell in cells)} |"


def _rule(table: Table) -> str:
    return "|" + "---|" + "---:|" * (len(table.columns) - 1)


def _marked(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text).replace("\n", " ")


def _cells(cells: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
