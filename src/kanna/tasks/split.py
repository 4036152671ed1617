"""Two parts of a task that share no fact: for choosing, and for the final figure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kanna.errors import InputError
from kanna.tasks.duplicates import near_duplicates
from kanna.tasks.rows import Row, read_rows

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
    """Places of the validation rows and of the test rows, each in order.

    Rows of one group, with the same prompt, or nearly the same one, stay together. Units are drawn with
    `seed`, among those of one answer at a time where answers repeat, so that both sides have all classes.

    Raises:
        InputError: A share outside (0, 1), or rows that cannot be parted.
    """
    if not 0 < share < 1:
        raise InputError(f"a share of {share} cannot be split off", "give one between 0 and 1")
    units = _units(rows)
    if len(units) < 2:
        raise InputError(
            f"the {len(rows)} rows belong together, so they cannot be split", "give rows of other groups"
        )
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for unit in units:
        strata[rows[unit[0]].answer.strip()].append(unit)
    generator = np.random.default_rng(seed)
    ordered: list[list[int]] = []
    rest: list[list[int]] = []
    for _, members in sorted(strata.items()):
        shuffled = [members[i] for i in generator.permutation(len(members))]
        whole = int(len(shuffled) * share)
        ordered += shuffled[:whole]
        rest += shuffled[whole:]
    wanted = share * len(rows)
    for i in generator.permutation(len(rest)):  # what rounding down left over
        if sum(map(len, ordered)) + len(rest[i]) / 2 > wanted and ordered:
            break
        ordered.append(rest[i])
    chosen = {place for unit in ordered for place in unit}
    return sorted(chosen), [place for place in range(len(rows)) if place not in chosen]


def split_task(
    path: str | Path,
    out: str | Path,
    *,
    share: float = VALIDATION,
    seed: int = 0,
    first: bool = False,
    force: bool = False,
) -> SplitResult:
    """Write OUT/validation and OUT/test with the suffix of the file; JSON lines are copied byte for byte.

    Args:
        first: The first rows are the validation part, as the code of papers has it, groups or not.

    Raises:
        InputError: Whatever is wrong with the file, or a part that exists already.
    """
    path, out = Path(path), Path(out)
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{path} is no .jsonl file", "write its rows as JSON lines; only those are split")
    rows = read_rows(path)
    parts = (out / "validation.jsonl", out / "test.jsonl")
    existing = [part for part in parts if part.exists()]
    if existing and not force:
        raise InputError(f"{existing[0]} exists already", "choose another folder, or add --force")
    count = max(1, int(share * len(rows)))
    places = (list(range(count)), list(range(count, len(rows)))) if first else split_rows(rows, share, seed)
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    _write(parts, [b"".join(lines[i] + b"\n" for i in some) for some in places])
    return SplitResult(*parts, (len(places[0]), len(places[1])), len(_units(rows)))


def _write(parts: Sequence[Path], contents: Sequence[bytes]) -> None:
    """Both or none, as far as a file system allows: renamed when both are complete."""
    parts[0].parent.mkdir(parents=True, exist_ok=True)
    partial = [part.with_name(f"{part.name}.partial") for part in parts]
    for path, content in zip(partial, contents, strict=True):
        path.write_bytes(content)
    for path, part in zip(partial, parts, strict=True):
        path.replace(part)


def _units(rows: Sequence[Row]) -> list[list[int]]:
    """Places of rows that must stay together, by joining what shares a group or nearly a prompt."""
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    groups: dict[str, int] = {}
    pairs = [(groups.setdefault(row.group, i), i) for i, row in enumerate(rows) if row.group]
    pairs += near_duplicates([row.prompt or row.text for row in rows])
    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    units: dict[int, list[int]] = defaultdict(list)
    for place in range(len(rows)):
        units[root(place)].append(place)
    return list(units.values())
