"""Is a task sound, and large enough for what is to be decided with it?"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.duplicates import near_duplicates
from kanna.tasks.floors import constant_answer, holds_answer
from kanna.tasks.records import CHOICE, TEXT
from kanna.tasks.rows import SHAPES, TABLES, Row, read_fields, read_row, read_rows, task_kind
from kanna.tasks.tolerance import Tolerance, rows_needed

ERROR, WARNING, NOTE = "error", "warning", "note"
_SHOWN = 20
_LOPSIDED = 0.9
_FLIPS = (0.02, 0.04, 0.1)


@dataclass(frozen=True)
class Finding:
    """One thing about a task.

    Args:
        level: error, warning or note.
        code: A short name.
        message: What it is and what to do.
        rows: Which rows, from 1, at most twenty.
    """

    level: str
    code: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What was found in a task file.

    Args:
        file: Its name.
        kind: choice, answer or text; empty where that cannot be told.
        rows: Sound ones.
        groups: Rows of one group count as one.
        constant: Share of the constant answer; None for text.
        needed: Share of rows that flip -> rows a tolerance needs; empty where none was given.
        findings: Errors first.
    """

    file: str
    kind: str
    rows: int
    groups: int
    constant: float | None
    needed: dict[str, int | None]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.level != ERROR for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, "kind": "task-check", **_plain(asdict(self)), "passed": self.passed}


def check_task(
    path: str | Path,
    *,
    tolerance: Tolerance | None = None,
    confidence: float = 0.95,
    tokenizer: Any = None,
    context: int | None = None,
) -> CheckResult:
    """Look a task file over.

    Args:
        tolerance: Say how many rows it needs.
        tokenizer: With `context`: compare lengths with what the model reads.

    Raises:
        InputError: The file cannot be read at all. Rows that are none are findings.
    """
    path = Path(path)
    rows, findings = _read(path)
    if not rows:
        return CheckResult(path.name, "", 0, 0, None, {}, tuple(findings))
    try:
        kind = task_kind(rows)
    except InputError as error:
        findings.append(Finding(ERROR, "mixed kinds", f"{error.problem}; {error.remedy}"))
        return CheckResult(path.name, "", len(rows), 0, None, {}, tuple(findings))
    findings += _findings(rows, kind)
    if tokenizer is not None and context is not None:
        findings += _lengths(rows, tokenizer, context)
    groups = len({row.group or f"\0{i}" for i, row in enumerate(rows)})
    needed: dict[str, int | None] = {}
    if tolerance is not None and kind != TEXT:
        needed = {f"{100 * f:g} %": rows_needed(tolerance, flips=f, confidence=confidence) for f in _FLIPS}
        findings += _enough(needed, groups, tolerance)
    constant = None if kind == TEXT else constant_answer(rows)[0]
    order = (ERROR, WARNING, NOTE)
    ordered = sorted(findings, key=lambda finding: order.index(finding.level))
    return CheckResult(path.name, kind, len(rows), groups, constant, needed, tuple(ordered))


def _read(path: Path) -> tuple[list[Row], list[Finding]]:
    """Sound rows, and a finding for each of the first rows that are none."""
    if path.suffix.lower() not in TABLES:
        return read_rows(path), []
    rows: list[Row] = []
    bad: list[str] = []
    fields = read_fields(path)
    while True:
        try:
            where, found = next(fields)
            rows.append(read_row(where, found))
        except StopIteration:
            break
        except InputError as error:
            bad.append(f"{error.problem}; {error.remedy}")
            if getgeneratorstate(fields) == GEN_CLOSED:
                break
    findings = [Finding(ERROR, "no row", text) for text in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        findings.append(Finding(ERROR, "no row", f"{len(bad) - _SHOWN} more lines that are no rows"))
    if not rows and not bad:
        findings.append(Finding(ERROR, "empty", f"there are no rows; give lines such as {SHAPES}"))
    return rows, findings


def _findings(rows: Sequence[Row], kind: str) -> Iterator[Finding]:
    yield from _repeats(rows)
    if kind == TEXT:
        return
    yield from _classes(rows, kind)
    holding = [i for i, row in enumerate(rows, 1) if kind != CHOICE and holds_answer(row)]
    if holding:
        share = f"{100 * len(holding) / len(rows):.1f} %"
        yield Finding(
            WARNING,
            "answer in prompt",
            f"{share} of the prompts hold their answer: scores of `contains` have that floor",
            tuple(holding[:_SHOWN]),
        )
    groups = Counter(row.group for row in rows if row.group)
    if groups:
        sizes = f"{min(groups.values())} to {max(groups.values())}"
        yield Finding(
            NOTE, "groups", f"{len(groups)} groups of {sizes} rows: they count as units in verdicts"
        )


def _repeats(rows: Sequence[Row]) -> Iterator[Finding]:
    same: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows, 1):
        same[row.prompt or row.text].append(i)
    repeated = [places for places in same.values() if len(places) > 1]
    disagreeing = [places for places in repeated if len({rows[i - 1].answer.strip() for i in places}) > 1]
    if repeated:
        count = sum(len(places) - 1 for places in repeated)
        extra = tuple(places[1] for places in repeated[:_SHOWN])
        yield Finding(WARNING, "duplicates", f"{count} rows repeat the prompt of an earlier one", extra)
    if disagreeing:
        first = tuple(i for places in disagreeing for i in places)[:_SHOWN]
        yield Finding(WARNING, "contradictions", "equal prompts have different right answers", first)
    unique = [places[0] for places in same.values()]
    texts = [rows[i - 1].prompt or rows[i - 1].text for i in unique]
    pairs = [
        (unique[a], unique[b])
        for a, b in near_duplicates(texts)
        if not _same_group(rows, unique[a], unique[b])
    ]
    if pairs:
        said = f"{len(pairs)} rows nearly repeat another: keep such rows on one side of a split (`group`)"
        yield Finding(WARNING, "near-duplicates", said, tuple(pair[1] for pair in pairs[:_SHOWN]))


def _same_group(rows: Sequence[Row], one: int, other: int) -> bool:
    group = rows[one - 1].group
    return bool(group) and group == rows[other - 1].group


def _classes(rows: Sequence[Row], kind: str) -> Iterator[Finding]:
    share, answer = constant_answer(rows)
    if share == 1.0 and len(rows) > 1:
        yield Finding(
            ERROR,
            "one class",
            f"every row has the right answer {answer!r}: a model that always says so is perfect; add rows of "
            "other answers",
        )
    elif share >= _LOPSIDED:
        yield Finding(
            WARNING, "lopsided", f"always answering {answer!r} gets {100 * share:.1f} %: accuracy says little"
        )
    else:
        yield Finding(NOTE, "constant answer", f"always answering {answer!r} gets {100 * share:.1f} %")
    if kind == CHOICE:
        counts = Counter(row.label for row in rows)
        if len(counts) == 1 and share < 1.0:
            yield Finding(WARNING, "one place", "the right choice stands in the same place in every row")


def _lengths(rows: Sequence[Row], tokenizer: Any, context: int) -> Iterator[Finding]:
    lengths = sorted(len(tokenizer(row.text, verbose=False)["input_ids"]) for row in rows)
    long = sum(length > context for length in lengths)
    middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
    said = f"{middle} tokens in the middle, {high} at 95 %, {lengths[-1]} at most, of {context}"
    if long:
        yield Finding(WARNING, "too long", f"{long} rows do not fit and would be cut from the left: {said}")
    else:
        yield Finding(NOTE, "length", said)


def _enough(needed: dict[str, int | None], units: int, tolerance: Tolerance) -> Iterator[Finding]:
    counts = [count for count in needed.values() if count is not None]
    if not counts:
        yield Finding(WARNING, "tolerance", "no number of rows shows that nothing at all was lost")
    elif units < min(counts):
        yield Finding(
            WARNING,
            "too few rows",
            f"{units} rows (or groups) are fewer than the {min(counts)} that {tolerance.text} needs at best",
        )


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    data["task_kind"] = data.pop("kind")
    return data
