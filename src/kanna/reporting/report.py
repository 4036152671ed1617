"""One self-contained page of results, as HTML and as Markdown."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.reporting.html import render as render_html
from kanna.reporting.markdown import render as render_markdown
from kanna.reporting.page import page
from kanna.reporting.sources import read_sources

TITLE = "Compression report"


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Args:
        html: The page.
        markdown: The same for places that show no HTML.
        verdicts: Whom each is about -> pass, fail, undecided or not judged.
        sources: Names of the results on the page.
    """

    html: Path
    markdown: Path
    verdicts: Mapping[str, str]
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "report",
            "html": str(self.html),
            "markdown": str(self.markdown),
            "verdicts": dict(self.verdicts),
            "sources": list(self.sources),
        }


def report(
    directories: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    title: str = TITLE,
    examples: bool = True,
    force: bool = False,
) -> ReportResult:
    """Write one page of all results in some folders, and of some model directories.

    Equal results give equal bytes.

    Args:
        directories: Folders that `kanna eval`, `compare` or `bench` wrote with --out, and models of kanna.
        out: The HTML file; the Markdown lies beside it under the same name.
        title: Of the page.
        examples: Show the texts of examples that flipped.
        force: Replace files that exist.

    Raises:
        InputError: Something is missing, damaged or from a newer kanna, or `out` is not to be written.
    """
    html = _checked(Path(out).expanduser().absolute(), force)
    made = page(read_sources(directories, examples), title)
    markdown = html.with_suffix(".md")
    _write({markdown: render_markdown(made), html: render_html(made)})
    verdicts = {one.title: one.status for one in made.verdicts}
    return ReportResult(html, markdown, verdicts, tuple(made.data))


def _checked(html: Path, force: bool) -> Path:
    if html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{html.name} is no HTML file", "choose an --out that ends in .html")
    for path in (html, html.with_suffix(".md")):
        if path.is_dir():
            raise InputError(f"{path} is a directory", "choose another --out")
        if os.path.lexists(path) and not force:
            raise InputError(f"{path} exists already", "choose another --out, or replace it with --force")
    return html


def _write(texts: Mapping[Path, str]) -> None:
    """All files under provisional names first, so that a full disk leaves nothing half-written."""
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial[path].open("wb") as file:
                # Half of a surrogate pair, which JSON can hold, has no UTF-8.
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        for path in texts:
            partial[path].replace(path)
    except OSError as error:
        raise InputError(
            f"{next(iter(texts)).parent} cannot be written to: {error.strerror}", "choose another --out"
        ) from error
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
