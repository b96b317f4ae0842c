"""Plots as SVG that goes into a page: Matplotlib draws, the page's style sheet has the last word on colours and type.

The same bytes for the same numbers: no dates, ids from the figure's name, fonts named and not embedded.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart without red and green; the page has lighter ones for the dark. Styles differ too.
COLORS = ("#0072b2", "#d55e00", "#008060", "#a0477d", "#8a6d00", "#3a8fc0", "#6a4fa3", "#5f5f5f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
INK, SIZE = "#010203", (4.5, 3.1)  # a color that no one else uses: the page's own; inches, as wide as a phone
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # Matplotlib brings it: text is measured alike everywhere
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "axes.grid": True,
    "path.simplify": False,
    "text.parse_math": False,  # names are of the user's
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """Points of one system; `low` and `high` where they have intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's matplotlibrc says
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        yield


def draw(name: str, title: str, description: str, paint: Callable[[Axes], None]) -> str:
    """Return the SVG of one plot, with its title and description for those who do not see it."""
    with _drawing(name):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None, "Creator": None})
    return _for_page(written.getvalue(), name, title, description)


def lines(
    name: str, title: str, description: str, found: Sequence[Line], x: str, y: str, *, log_x: bool = False
) -> str:
    """Return a line for each system, with error bars where there are intervals."""

    def paint(axes: Axes) -> None:
        for place, one in enumerate(found):
            look = dict(zip(("color", "marker", "linestyle"), _look(place), strict=True))
            bars = None
            if one.low:
                bars = [[v - low for v, low in zip(one.y, one.low, strict=True)],
                        [high - v for v, high in zip(one.y, one.high, strict=True)]]  # fmt: skip
            axes.errorbar(one.x, one.y, yerr=bars, label=one.label, markersize=4, capsize=2, linewidth=1.4, **look)
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({value for one in found for value in one.x})
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.minorticks_off()
        axes.set(xlabel=x, ylabel=y)
        axes.figure.legend(loc="outside upper left", ncols=2)

    return draw(name, title, description, paint)


def scatter(name: str, title: str, description: str, points: Mapping[str, tuple[float, float]], x: str, y: str) -> str:
    """Return named points, with a line at zero."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        for label, (at_x, at_y) in points.items():
            axes.plot([at_x], [at_y], "o", color=COLORS[0], markersize=5)
            axes.annotate(label, (at_x, at_y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.margins(0.12)
        axes.set(xlabel=x, ylabel=y)

    return draw(name, title, description, paint)


def reliability(name: str, title: str, description: str, found: Sequence[Line]) -> str:
    """Return confidence against the share that is right, beside the diagonal of those who are as sure as right."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        for place, one in enumerate(found):
            color, marker, line = _look(place)
            axes.plot(one.x, one.y, label=one.label, color=color, marker=marker, linestyle=line, markersize=4)
        axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 102), ylim=(0, 102))
        axes.figure.legend(loc="outside upper left", ncols=2)

    return draw(name, title, description, paint)


def histogram(name: str, title: str, description: str, edges: Sequence[float], counts: Sequence[int], x: str) -> str:
    """Return bars of counts between edges."""

    def paint(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.85)
        axes.set(xlabel=x, ylabel="rows")

    return draw(name, title, description, paint)


def _look(place: int) -> tuple[str, str, str]:
    return COLORS[place % 8], MARKERS[place % 8], LINES[(place + place // 8) % 8]


def _for_page(svg: str, name: str, title: str, description: str) -> str:
    """Make ids of their own, colours the page's, and say what is seen."""
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    for place, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--c{place}, {color})")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    labels = f'role="img" aria-labelledby="{name}-title {name}-description"'
    told = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    return re.sub(r"<svg([^>]*)>", lambda found: f"<svg{found[1]} {labels}>{told}", svg, count=1)
