"""One page of all results, those of every method among them."""

from collections.abc import Sequence
from pathlib import Path

from kanna import methods
from kanna.reporting import demo
from kanna.reporting import report as reporting
from kanna.reporting.report import TITLE, ReportResult


def report(
    directories: str | Path | Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    title: str = TITLE,
    examples: bool = True,
    force: bool = False,
) -> ReportResult:
    """Write one page of all results in some folders, and of some model directories.

    Equal results give equal bytes.

    Args:
        directories: A folder that verbs wrote with --out, a single result or a model of kanna; or several.
        out: The HTML file; the Markdown lies beside it under the same name, and where a search is among the
            results its trials as NAME-trials.csv.
        title: Of the page.
        examples: Show the texts of examples that flipped, of answers and of samples.
        force: Replace files that exist.

    Returns:
        Where page and Markdown are, and the verdicts in them.

    Raises:
        InputError: Something is missing, damaged or from a newer kanna, or `out` is not to be written.
    """
    places = [directories] if isinstance(directories, str | Path) else directories
    return reporting.report(
        places, out, views=(*methods.views(), demo.VIEW), title=title, examples=examples, force=force
    )
