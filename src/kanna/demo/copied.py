"""The model and the data of the demo as files of one's own, to try verbs on."""

import csv
import io
import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from kanna.checkpoint.outputs import InTheWay, final_name
from kanna.checkpoint.writer import output_directory

MODEL, SHEET = "model", "questions.csv"
_COLUMNS = ("prompt", "answer", "group")
_MOVE = "choose another directory, or move what is there away yourself"
# By a system's file manager.
_LEFT_BEHIND = ".DS_Store"


def copy_files(out: str | Path, force: bool = False) -> tuple[Path, list[str]]:
    """Write the model, its questions (as rows and as a spreadsheet), calibration text and held-out text.

    Args:
        out: A new directory.
        force: Replace one that holds these files, all as they were written, and no others.

    Returns:
        The directory and the names in it.

    Raises:
        InputError: `out` exists and is not to be replaced, or cannot be written.
    """
    target, contents = final_name(out), _contents()
    with output_directory(
        target, force=force, refuse=lambda path: _refuse_replacing(path, contents)
    ) as partial:
        for name, data in contents.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        names = sorted(path.name for path in partial.iterdir())
    return target, names


def _contents() -> dict[str, bytes]:
    """Relative path -> what is written there."""
    with as_file(files("kanna.demo")) as home:
        model = {f"{MODEL}/{path.name}": path.read_bytes() for path in sorted((home / "model").iterdir())}
        rows = {path.name: path.read_bytes() for path in sorted((home / "data").glob("*.jsonl"))}
    return {**model, **rows, SHEET: _sheet(rows["questions.jsonl"].decode("utf-8")).encode("utf-8")}


def _refuse_replacing(target: Path, contents: Mapping[str, bytes]) -> None:
    """Raise InTheWay for a directory with anything in it that would not be written again as it is."""
    if target.is_symlink() or not target.is_dir():
        raise InTheWay(f"{target} is no directory, so --force does not replace it", _MOVE)
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_dir() and not path.is_symlink():
            known = any(one.startswith(f"{name}/") for one in contents)
        else:
            known = name in contents and path.is_file() and path.read_bytes() == contents[name]
        if not known and path.name != _LEFT_BEHIND:
            raise InTheWay(
                f"{target} holds {name}, which is not as kanna wrote it, so --force does not replace it",
                _MOVE,
            )


def _sheet(rows: str) -> str:
    """Rows of JSON as CSV, as a spreadsheet would be saved; without the space before an answer."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in rows.splitlines():
        row = json.loads(line)
        writer.writerow([row[column].strip() for column in _COLUMNS])
    return written.getvalue()
