"""One self-contained page of results, as HTML and as Markdown."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint.whole import write_whole
from kanna.errors import InputError
from kanna.reporting.html import render as render_html
from kanna.reporting.markdown import is_ours as is_markdown
from kanna.reporting.markdown import render as render_markdown
from kanna.reporting.page import page, results
from kanna.reporting.sources import Source, read_sources
from kanna.reporting.views import View

TITLE = "Compression report"


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Args:
        html: The page.
        markdown: The same for places that show no HTML.
        verdicts: Whom each is about -> its status.
        sources: Names of the results on the page.
        trials: All trials as CSV, where some result has any.
    """

    html: Path
    markdown: Path
    verdicts: Mapping[str, str]
    sources: tuple[str, ...]
    trials: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "report",
            "html": str(self.html),
            "markdown": str(self.markdown),
            "verdicts": dict(self.verdicts),
            "sources": list(self.sources),
            "trials": None if self.trials is None else str(self.trials),
        }


def report(
    directories: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    views: Sequence[View] = (),
    title: str = TITLE,
    examples: bool = True,
    force: bool = False,
) -> ReportResult:
    """Write one page; see `kanna.report`.

    Args:
        views: Of the results that are no evaluation, comparison or bench; their tables go to NAME-trials.csv.
    """
    html = Path(out).expanduser().absolute()
    if html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{html.name} is no HTML file", "choose an --out that ends in .html")
    markdown = html.with_suffix(".md")
    _check_free(html, force)
    _check_free(markdown, force, is_markdown)
    sources = read_sources(directories, views, examples)
    texts, trials = {}, None
    if tables := _tables(sources, views):
        trials = html.with_name(f"{html.stem}-trials.csv")
        _check_free(trials, force, _is_table)
        texts[trials] = tables
    made = page(sources, title, views)
    _write({**texts, markdown: render_markdown(made), html: render_html(made)}, force)
    verdicts = {verdict.title: verdict.status for verdict in made.verdicts}
    return ReportResult(html, markdown, verdicts, tuple(made.data), trials)


def _tables(sources: Sequence[Source], views: Sequence[View]) -> str:
    """The tables of all views that have some, with an empty line between two."""
    drawn = [(view.tables, [result.at for result in results(sources, view)]) for view in views]
    return "\n".join(tables(places) for tables, places in drawn if tables and places)


def _check_free(path: Path, force: bool, ours: Callable[[str], bool] = lambda _: True) -> None:
    """Raise InputError for a file in the way.

    Args:
        ours: Tells a text that kanna wrote from others, where nobody asked for that name.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory", "choose another --out")
    if os.path.lexists(path) and not force:
        raise _exists(path)
    if path.is_file() and not ours(path.read_text(encoding="utf-8", errors="replace")):
        raise InputError(
            f"{path}, where a part of the report goes, is not from kanna, so --force does not replace it",
            "choose another --out, or move it away",
        )


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists already", "choose another --out, or replace it with --force")


def _is_table(text: str) -> bool:
    """Whether a text begins as the tables of trials do."""
    return text.startswith("search,")


def _write(texts: Mapping[Path, str], force: bool) -> None:
    try:
        # Half of a surrogate pair, which JSON can hold, has no UTF-8.
        write_whole({path: text.encode("utf-8", "replace") for path, text in texts.items()}, replace=force)
    except FileExistsError as error:
        taken = next((path for path in texts if os.path.lexists(path)), next(iter(texts)))
        raise _exists(taken) from error
    except OSError as error:
        raise InputError(
            f"{next(iter(texts)).parent} cannot be written to: {error.strerror}", "choose another --out"
        ) from error
