"""What is written about sets of scales: the record of one, and the journal of which is in use.

Imports nothing heavy, so that a report can be made where no torch is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kanna.checked import check_version, read_json, validated
from kanna.checkpoint.set_names import FOLDER

RECORD, TENSORS, JOURNAL = "scales.json", "scales.safetensors", "active.json"
FORMAT_VERSION = 1
FETCH_OR_TUNE = "fetch it again, or tune it again"
_WITHOUT = "remove it to use the model as it was quantised"
Granularity = Literal["channel", "group"]


class Record(BaseModel):
    """All that scales.json holds.

    Args:
        name: Of the set.
        codes: Hash of what it was learnt on; see `scale_sets.codes_hash`.
        granularity: Whether d is one of a row or of each group of it.
        tensors: sha256 of the file beside it.
        numbers: How many there are.
        flipped: Of them, scales that changed their sign.
        moved: Module path -> root of the mean square of d, and the largest; empty where it was not recorded.
        base: Name of the model.
        data_hash: sha256 of the rows that were learnt.
        config: With what settings.
        versions: Of the libraries that computed it.
        scores: What was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    name: str
    codes: str
    granularity: Granularity
    tensors: str
    numbers: int
    flipped: int = 0
    moved: dict[str, tuple[float, float]] = Field(default_factory=dict)
    base: str = ""
    data_hash: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)


class Entry(BaseModel):
    """One change; `scales` is None for the model as it was quantised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: Literal["use", "rollback"]
    scales: str | None


class Journal(BaseModel):
    """All that active.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    entries: tuple[Entry, ...] = ()

    @property
    def stack(self) -> list[str | None]:
        """What was used, and what it took the place of; the last one is in use. Going back takes away."""
        held: list[str | None] = [None]
        for entry in self.entries:
            if entry.verb == "use":
                held.append(entry.scales)
            elif entry.scales in held:
                del held[len(held) - held[::-1].index(entry.scales) :]
            else:
                held.append(entry.scales)
        return held


def checked_record(data: Mapping[str, Any], where: str | Path) -> Record:
    """The record that some JSON is.

    Raises:
        InputError: It is none, or of a newer format.
    """
    check_version(data.get("format_version"), where, FORMAT_VERSION, FETCH_OR_TUNE)
    return validated(Record, data, f"{where} is damaged", FETCH_OR_TUNE)


def read_journal(base: Path) -> Journal:
    """The journal of a model's directory; empty where there is none.

    Raises:
        InputError: It is damaged, or of a newer format.
    """
    path = base / FOLDER / JOURNAL
    if not path.is_file():
        return Journal()
    data = read_json(path)
    check_version(data.get("format_version"), path, FORMAT_VERSION, _WITHOUT)
    return validated(Journal, data, f"{path} is damaged", _WITHOUT)


def quantised_roles(directory: Path) -> list[str]:
    """Roles of the matrices that became whole numbers, as the inventory had them; none where not recorded."""
    file = directory / "kanna.json"
    steps = read_json(file).get("steps", []) if file.is_file() else []
    recorded = [step["scores"]["roles"] for step in steps if "roles" in step.get("scores", {})]
    return [one["role"] for one in recorded[-1]] if recorded else []
