"""Two parts of a task that share no fact: for choosing, and for the final figure."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kanna.checkpoint.whole import write_whole
from kanna.errors import InputError
from kanna.tasks.data.duplicates import near_duplicates
from kanna.tasks.data.rows import (
    TABLES,
    Row,
    decoded,
    fields_of,
    lines_of,
    read_data,
    rows_of,
    sound,
)
from kanna.tasks.data.sheets import JSON_LINES
from kanna.tasks.data.units import plain, same, together

VALIDATION = 0.2


@dataclass(frozen=True)
class SplitResult:
    """Two files.

    Args:
        validation: The smaller part.
        test: The rest.
        rows: Of each.
        units: Groups, or rows that have none and resemble no other.
    """

    validation: Path
    test: Path
    rows: tuple[int, int]
    units: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "task-split",
            "validation": str(self.validation),
            "test": str(self.test),
            "rows": {"validation": self.rows[0], "test": self.rows[1]},
            "units": self.units,
        }


def split_rows(rows: Sequence[Row], share: float = VALIDATION, seed: int = 0) -> tuple[list[int], list[int]]:
    """Places of the validation rows and of the test rows, each in order; neither is empty.

    Rows of one group, with the same prompt, or nearly the same one, stay together. Units are drawn with
    `seed`, as many of each answer as its share, so that both sides have all classes. Units that would go
    beyond the share by more than half of themselves are left to the test part.

    Raises:
        InputError: A share outside (0, 1), or rows that cannot be parted.
    """
    _check_share(share)
    return _drawn(rows, units_of(rows), share, seed)


def _drawn(
    rows: Sequence[Row], units: Sequence[list[int]], share: float, seed: int
) -> tuple[list[int], list[int]]:
    if len(units) < 2:
        raise InputError(
            f"the {len(rows)} rows belong together, so they cannot be split", "give rows of other groups"
        )
    wanted, taken = share * len(rows), 0
    chosen: list[list[int]] = []
    for unit in _mixed(rows, units, np.random.default_rng(seed)):
        if taken + len(unit) / 2 <= wanted:
            chosen.append(unit)
            taken += len(unit)
    chosen = chosen or [min(units, key=len)]
    if len(chosen) == len(units):
        chosen.remove(min(chosen, key=len))
    places = {place for unit in chosen for place in unit}
    return sorted(places), [place for place in range(len(rows)) if place not in places]


def _mixed(
    rows: Sequence[Row], units: Sequence[list[int]], generator: np.random.Generator
) -> list[list[int]]:
    """Units in random order, those of each answer spread evenly: any beginning has all classes."""
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for unit in units:
        strata[plain(rows[unit[0]].answer.strip())].append(unit)
    keyed = []
    for _, members in sorted(strata.items()):
        places = (generator.permutation(len(members)) + generator.random()) / len(members)
        keyed += list(zip(places.tolist(), members, strict=True))
    return [unit for _, unit in sorted(keyed)]


def split_task(
    path: str | Path,
    out: str | Path,
    *,
    share: float = VALIDATION,
    seed: int = 0,
    first: bool = False,
    force: bool = False,
) -> SplitResult:
    """Write OUT/validation.jsonl and OUT/test.jsonl; JSON lines are copied as they are.

    Args:
        first: The first rows are the validation part, as the code of papers has it, groups or not.

    Raises:
        InputError: Whatever is wrong with the file, or a part that exists already.
    """
    path, out = Path(path), Path(out)
    _check_share(share)
    if path.suffix.lower() not in TABLES:
        raise InputError(f"{path} is plain text, which has no rows", f"give rows: {', '.join(TABLES)}")
    data = read_data(path)
    lines, rows = _lines(path, data), rows_of(path, data)
    parts = (out / "validation.jsonl", out / "test.jsonl")
    _check_free(path, parts, force)
    units = units_of(rows)
    if first and len(rows) < 2:
        raise InputError("one row cannot be split", "give more rows")
    count = max(1, int(share * len(rows)))
    in_order = list(range(count)), list(range(count, len(rows)))
    places = in_order if first else _drawn(rows, units, share, seed)
    _write(parts, ["".join(f"{lines[i]}\n" for i in some) for some in places], force)
    return SplitResult(*parts, (len(places[0]), len(places[1])), len(units))


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"a share of {share} cannot be split off", "give one between 0 and 1")


def _lines(path: Path, data: bytes) -> list[str]:
    """Each row of a table as a JSON line."""
    if path.suffix.lower() in JSON_LINES:
        return [line for _, line in lines_of(path, decoded(path, data))]
    return [json.dumps(fields, ensure_ascii=False, default=str) for _, fields in sound(fields_of(path, data))]


def _check_free(path: Path, parts: Sequence[Path], force: bool) -> None:
    """Raise InputError for a part that is the file that is split, or in the way."""
    for part in parts:
        if part.is_dir():
            raise InputError(f"{part} is a directory", "choose another folder")
        if part.exists() and part.samefile(path):
            raise InputError(
                f"{part} is the file that is split, which is never replaced", "choose another folder"
            )
        if os.path.lexists(part) and not force:
            raise _exists(part)


def _exists(part: Path) -> InputError:
    return InputError(f"{part} exists already", "choose another folder, or add --force")


def _write(parts: Sequence[Path], contents: Sequence[str], force: bool) -> None:
    """Both or none, as far as a file system allows: renamed when both are complete."""
    try:
        texts = {part: text.encode("utf-8") for part, text in zip(parts, contents, strict=True)}
        write_whole(texts, replace=force)
    except FileExistsError as error:
        taken = next((part for part in parts if os.path.lexists(part)), parts[0])
        raise _exists(taken) from error
    except OSError as error:
        raise InputError(
            f"{parts[0].parent} cannot be written to: {error.strerror}", "give another folder"
        ) from error


def units_of(rows: Sequence[Row]) -> list[list[int]]:
    """Places of rows that must stay together, by joining what shares a group or nearly a prompt."""
    pairs = same([row.group or None for row in rows])
    return together(len(rows), [*pairs, *near_duplicates([row.prompt or row.text for row in rows])])
