"""The sets of scales of a model's directory, as its report reads them; no torch is needed."""

from pathlib import Path
from typing import Any, Literal

from kanna.checked import read_json
from kanna.checkpoint.scale_records import (
    RECORD,
    TENSORS,
    Record,
    checked_record,
    quantised_roles,
    read_journal,
)
from kanna.checkpoint.set_names import FOLDER
from kanna.result import Result, Several


class Held(Result):
    """One set.

    Args:
        bytes: Of its files.
    """

    record: Record
    bytes: int


class Shelf(Result):
    """All of them.

    Args:
        active: Name of the one in use; None for the model as it was quantised.
        roles: Of the matrices that became whole numbers, where that is recorded.
    """

    schema_version: int = 1
    kind: Literal["scales"] = "scales"
    active: str | None
    roles: Several[str] = ()
    sets: Several[Held]


def gather(directory: Path) -> dict[str, Any] | None:
    """What `Shelf` holds, of a directory; None where it has no sets."""
    folders = sorted(path.parent for path in (directory / FOLDER).glob(f"*/{RECORD}"))
    sets = [_held(folder) for folder in folders if not folder.name.startswith(".")]
    if not sets:
        return None
    active, roles = read_journal(directory).stack[-1], quantised_roles(directory)
    return {"schema_version": 1, "kind": "scales", "active": active, "roles": roles, "sets": sets}


def _held(folder: Path) -> dict[str, Any]:
    size = sum((folder / name).stat().st_size for name in (RECORD, TENSORS) if (folder / name).is_file())
    record = read_json(folder / RECORD)
    checked_record(record, folder / RECORD)
    return {"record": record, "bytes": size}
