"""The model and the data of the demo as files of one's own, to try verbs on."""

import csv
import io
import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.writer import output_directory

MODEL, SHEET = "model", "questions.csv"
_COLUMNS = ("prompt", "answer", "group")


def copy_files(out: str | Path) -> tuple[Path, list[str]]:
    """Write the model, its questions (as rows and as a spreadsheet), calibration text and held-out text.

    Args:
        out: A new directory.

    Returns:
        The directory and the names in it.

    Raises:
        InputError: `out` exists or cannot be written.
    """
    target = final_name(out)
    with output_directory(target) as partial, as_file(files("kanna.demo")) as home:
        shutil.copytree(home / "model", partial / MODEL)
        for path in sorted((home / "data").glob("*.jsonl")):
            shutil.copy(path, partial / path.name)
        questions = (home / "data" / "questions.jsonl").read_text(encoding="utf-8")
        (partial / SHEET).write_text(_sheet(questions), encoding="utf-8")
        names = sorted(path.name for path in partial.iterdir())
    return target, names


def _sheet(rows: str) -> str:
    """Rows of JSON as CSV, as a spreadsheet would be saved; without the space before an answer."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in rows.splitlines():
        row = json.loads(line)
        writer.writerow([row[column].strip() for column in _COLUMNS])
    return written.getvalue()
