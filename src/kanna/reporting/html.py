"""A page as one HTML file that needs nothing else: styles, script, drawings and data are inside."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import kanna
from kanna.reporting.blocks import Cell, Page, Term

_FLAG = re.compile(r"--[a-z-]{1,24}")
_WORDS = re.compile(r"(\s+)")
_LONG = re.compile(r"\S{16,}")
_JOINTS = re.compile(r"(?<=[^\s./_#-][./_#-])(?=[^\s./_#-])")
_STATUS = {
    "pass": ("✓", "Pass", "still right, within the allowed drop"),
    "fail": ("✕", "Fail", "beyond the allowed drop"),
    "undecided": ("?", "Undecided", "not enough data to tell"),
    "not judged": ("~", "Not judged", "not held against a tolerance"),
    "empty": ("!", "Empty", "the base knows no more than one constant answer: nothing could be lost"),
    "better": ("+", "Better", "the whole interval of the difference lies above 0"),
    "worse": ("\N{MINUS SIGN}", "Worse", "the whole interval of the difference lies below 0"),
    "no clear difference": ("?", "No clear difference", "the interval holds 0"),
    "no edit": ("=", "No edit", "the model stays as it is"),
}


def render(page: Page) -> str:
    """The whole document. Everything that came from results is escaped; NUL, which HTML drops, is shown."""
    style, script = _asset("page.css"), _asset("page.js")
    text = _environment().get_template("page.html").render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(_data(page.data)),
        version=kanna.__version__,
    )  # fmt: skip
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("kanna.reporting", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"statuses": _STATUS}
    made.filters |= {
        "kind": lambda block: type(block).__name__.lower(),  # the macro that draws it
        "drawing": lambda chart: Markup(chart.svg),  # charts.py escapes what it draws
        "word": lambda status: status.replace(" ", "-"),
        "breakable": _breakable,
    }
    made.tests |= {
        "text": lambda cell: isinstance(cell, str),
        "several": lambda cell: isinstance(cell, tuple),
        "named": _is_named,
        "term": lambda cell: isinstance(cell, Term),
    }
    return made


def _breakable(text: str) -> Markup:
    """A text whose long names, as of modules and files, break behind a point or a stroke if they must.

    Options of commands do not break.
    """
    return Markup("").join(map(_word, _WORDS.split(text)))


def _word(word: str) -> Markup:
    if _FLAG.fullmatch(word):
        return Markup('<span class="flag">{}</span>').format(word)
    return Markup("<wbr>").join(_JOINTS.split(word) if _LONG.fullmatch(word) else [word])


def _is_named(cell: Cell) -> bool:
    """Whether a cell of a table has a long name in it, which should not break at every joint."""
    parts = cell if isinstance(cell, tuple) else (cell,)
    words = (word for part in parts if isinstance(part, str) for word in part.split())
    return any(_LONG.fullmatch(word) and _JOINTS.search(word) for word in words)


def _asset(name: str) -> str:
    return (files("kanna.reporting") / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only our own style and script may act, and nothing may be fetched, whatever a text smuggles in."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: no "<", which could end it, and no NaN."""
    text = json.dumps(_finite(dict(data)), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    """Numbers that are not finite as text."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
