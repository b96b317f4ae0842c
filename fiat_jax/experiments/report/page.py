"""A report as one HTML file that needs no server and no network: style, script, plots and rows are within."""

import base64
import functools
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fiat_jax.experiments.report.content import Browser, Figure, Report, Table, Text

# what HTML or a script could take for its own within a script element, and what JavaScript once took for line ends
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def as_html(report: Report) -> str:
    """Return the page. Every text goes through Jinja's escaping, or as escaped JSON into an element that never runs.

    The page's policy lets run the one script whose hash it names, and nothing be fetched.
    """
    script, style = _asset("page.js"), _asset("page.css")
    template = _environment().from_string(_asset("page.html"))
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src 'unsafe-inline'; img-src data:"
    return template.render(report=report, script=Markup(script), style=Markup(style), policy=policy)


def in_script(value: Any) -> Markup:
    """Return JSON that is safe within a script element."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPES))


def _asset(name: str) -> str:
    return files("fiat_jax.experiments.report").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _environment() -> Environment:
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kinds = {"table": Table, "figure": Figure, "browser": Browser, "text": Text}
    made.tests |= {
        name: functools.partial(lambda kind, value: isinstance(value, kind), kind) for name, kind in kinds.items()
    }
    made.filters |= {"in_script": in_script, "markup": Markup}
    return made
