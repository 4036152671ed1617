"""Is a task sound, and large enough for what is to be decided with it?"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.duplicates import near_duplicates
from kanna.tasks.data.mapping import refuse_unmapped
from kanna.tasks.data.rows import TABLES, Row, fields_of, joined, read_data, read_row, read_rows, task_kind
from kanna.tasks.data.tables import SHAPES
from kanna.tasks.data.units import plain, same, together
from kanna.tasks.metrics.summaries import constant_answer, holds_answer
from kanna.tasks.records import ANSWER, CHOICE, EMBEDDED, SIMILARITY, TEXT
from kanna.tasks.verdict.statistics import Pairs, difference_bound, normal_quantile
from kanna.tasks.verdict.tolerance import Tolerance, check_below_1, rows_needed

ERROR, WARNING, NOTE = "error", "warning", "note"
_SHOWN = 20
_LOPSIDED = 0.9
_FLIPS = (0.0, 0.02, 0.04, 0.1)
_USUAL = "2 %"  # after mild compression
ASSUMED_RIGHT = 0.8
_TOO_FEW, _TOLERANCE = "too few rows", "tolerance"
_MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "nil", "-")


@dataclass(frozen=True)
class Finding:
    """One thing about a task.

    Args:
        level: error, warning or note.
        code: A short name.
        message: What it is and what to do.
        rows: Which rows, from 1 (a header does not count), at most twenty.
        like: For rows that repeat others: of each of `rows`, the earlier row it repeats.
    """

    level: str
    code: str
    message: str
    rows: tuple[int, ...] = ()
    like: tuple[int, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What was found in a task file.

    Args:
        file: Its name.
        kind: choice, answer, text, similarity or retrieval; empty where that cannot be told.
        rows: Sound ones.
        groups: Rows of one group, and rows that repeat one another, count as one, others as one each.
        constant: Share of the constant answer; None for text and embeddings.
        needed: Share of rows that flip -> rows a tolerance needs if 80 % of the answers are right; empty
            where none was given.
        promised: Share of answers that change -> the drop that these rows rule out, as a share, where as many
            change each way; empty where rows are not right or wrong.
        findings: Errors first.
    """

    file: str
    kind: str
    rows: int
    groups: int
    constant: float | None
    needed: dict[str, int | None]
    promised: dict[str, float]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.level != ERROR for finding in self.findings)

    @property
    def conclusion(self) -> str:
        """The last word on the task: no warning is forgotten in it."""
        if not self.passed:
            return "not sound: mend the errors"
        warnings = [finding.code for finding in self.findings if finding.level == WARNING]
        if _TOO_FEW in warnings:
            return "sound rows, but too few for this tolerance"
        if _TOLERANCE in warnings:
            return "sound rows, but no number of them is enough for this tolerance"
        count = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        return f"sound, with {count}" if warnings else "sound"

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self) | {"kind": "task-check", "task_kind": self.kind}
        return {"schema_version": 1, **fields, "passed": self.passed}


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
        InputError: The file cannot be read at all, no such confidence, or a tolerance that allows everything.
            Rows that are none are findings.
    """
    if not 0.5 < confidence < 1:
        raise InputError(f"a confidence of {confidence} makes no sense", "give one such as 0.95")
    path = Path(path)
    rows, findings = _read(path)
    if not rows:
        return CheckResult(path.name, "", 0, 0, None, {}, {}, tuple(findings))
    try:
        kind = task_kind(rows)
    except InputError as error:
        findings.append(Finding(ERROR, "mixed kinds", f"{error.problem}; {error.remedy}"))
        return CheckResult(path.name, "", len(rows), 0, None, {}, {}, tuple(findings))
    findings += _findings(rows, kind)
    if tokenizer is not None and context is not None:
        findings += _lengths(rows, tokenizer, context, kind)
    groups = _groups(rows)
    if kind != TEXT:
        check_below_1(path.name, tolerance, "a score of such rows")
    needed: dict[str, int | None] = {}
    if tolerance is not None and kind in (TEXT, SIMILARITY):
        what = "how much text" if kind == TEXT else "how many pairs"
        message = f"{what} it needs cannot be told beforehand; kanna compare says whether it was enough"
        findings.append(Finding(NOTE, _TOLERANCE, message))
    elif tolerance is not None:
        needed = {
            f"{100 * flips:g} %": rows_needed(tolerance, ASSUMED_RIGHT, flips, confidence) for flips in _FLIPS
        }
        findings += _enough(needed, groups, tolerance)
    promised = {} if kind in (TEXT, *EMBEDDED) else _promised(groups, confidence)
    constant = None if kind in (TEXT, *EMBEDDED) else constant_answer(rows)[0]
    order = (ERROR, WARNING, NOTE)
    ordered = sorted(findings, key=lambda finding: order.index(finding.level))
    return CheckResult(path.name, kind, len(rows), groups, constant, needed, promised, tuple(ordered))


def _groups(rows: Sequence[Row]) -> int:
    """Units that verdicts count."""
    said = [(plain(row.prompt or row.text).strip(), *map(plain, row.accepted)) for row in rows]
    return len(together(len(rows), [*same([row.group or None for row in rows]), *same(said)]))


def _read(path: Path) -> tuple[list[Row], list[Finding]]:
    """Sound rows, and a finding for each of the first rows that are none."""
    if path.suffix.lower() not in TABLES:
        return read_rows(path), []
    rows: list[Row] = []
    bad: list[str] = []
    placed = list(fields_of(path, read_data(path)))
    try:
        refuse_unmapped(path, placed)
    except InputError as error:
        return [], [Finding(ERROR, "no task", f"{error.problem}; {error.remedy}")]
    for where, fields in placed:
        try:
            if isinstance(fields, InputError):
                raise fields
            rows.append(read_row(where, fields))
        except InputError as error:
            bad.append(f"{error.problem}; {error.remedy}")
    findings = [Finding(ERROR, "no row", text) for text in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        findings.append(Finding(ERROR, "no row", f"and {len(bad) - _SHOWN} more that are no rows"))
    if not rows and not bad:
        findings.append(Finding(ERROR, "empty", f"there are no rows; give lines such as {SHAPES}"))
    return rows, findings


def _findings(rows: Sequence[Row], kind: str) -> Iterator[Finding]:
    yield from _repeats(rows)
    if kind == TEXT:
        # Tables for classification often have the columns text and label.
        if any(key.lower() in ("label", "class", "category") for row in rows for key in row.extra):
            what = "the rows are text and their labels go unused"
            yield Finding(WARNING, "unused labels", f"{what}: to score them, name the keys prompt and answer")
        return
    yield from _about_embeddings(rows, kind) if kind in EMBEDDED else _classes(rows, kind)
    holding = [i for i, row in enumerate(rows, 1) if kind == ANSWER and holds_answer(row)]
    if holding:
        share = f"{100 * len(holding) / len(rows):.1f} %"
        yield Finding(
            WARNING,
            "answer in prompt",
            f"{share} of the prompts hold their answer: a model that repeats the prompt gets as much by "
            "--metric contains",
            tuple(holding[:_SHOWN]),
        )
    groups = Counter(row.group for row in rows if row.group)
    yield from _missing_groups(groups)
    if groups:
        low, high = min(groups.values()), max(groups.values())
        sizes = f"{low}" if low == high else f"{low} to {high}"
        yield Finding(
            NOTE, "groups", f"{len(groups):,} groups of {sizes} rows: each counts as one unit in verdicts"
        )


def _missing_groups(groups: Mapping[str, int]) -> Iterator[Finding]:
    """Some programs have a word for a value that is missing."""
    for name, count in groups.items():
        if count > 1 and name.strip().lower() in _MISSING:
            message = f"{count:,} rows are one group, {name!r}: leave it empty if they belong to none"
            yield Finding(WARNING, "missing groups", message)


def _about_embeddings(rows: Sequence[Row], kind: str) -> Iterator[Finding]:
    if kind == SIMILARITY:
        scores = [row.score for row in rows if row.score is not None]
        low, high = min(scores), max(scores)
        if low == high:
            yield Finding(
                ERROR, "one score", f"every pair has the score {low:g}: nothing can be ordered by it"
            )
        else:
            yield Finding(NOTE, "scores", f"{len(set(scores)):,} different scores from {low:g} to {high:g}")
        return
    chance = sum(1 / (1 + len(row.negatives)) for row in rows) / len(rows)
    yield Finding(
        NOTE, "chance", f"taking any of the texts of a row finds the positive in {100 * chance:.2f} %"
    )


def _repeats(rows: Sequence[Row]) -> Iterator[Finding]:
    texts = [plain(row.prompt or row.text) for row in rows]
    equal: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts, 1):
        equal[text].append(i)
    repeated = [places for places in equal.values() if len(places) > 1]
    if repeated:
        pairs = [(row, places[0]) for places in repeated for row in places[1:]]
        what = (
            "pair"
            if rows[0].pair
            else "query"
            if rows[0].negatives
            else "prompt"
            if rows[0].prompt
            else "text"
        )
        yield _pairs("duplicates", f"{_rows(len(pairs), 'repeats', 'repeat')} the {what} of another", pairs)
    opposed = [
        (other, places[0])
        for places in repeated
        for other in places[1:]
        if plain(rows[other - 1].answer.strip()) != plain(rows[places[0] - 1].answer.strip())
    ]
    if opposed and not rows[0].negatives:  # several texts may be what a query looks for
        yield _pairs("contradictions", "equal prompts have different right answers", opposed)
    near = [
        (later + 1, earlier + 1)
        for earlier, later in near_duplicates(texts)
        if texts[earlier] != texts[later]
        and not (rows[later].group and rows[earlier].group == rows[later].group)
    ]
    if near:
        count = len({later for later, _ in near})
        message = (
            f"{_rows(count, 'nearly repeats', 'nearly repeat')} another (80 % of the runs of three words): "
        )
        yield _pairs("near-duplicates", message + "kanna task split keeps such rows on one side", near)


def _pairs(code: str, message: str, pairs: Sequence[tuple[int, int]]) -> Finding:
    """A warning about rows and the earlier ones they repeat, each row once."""
    first = dict(reversed(pairs))
    some = sorted(first.items())[:_SHOWN]
    return Finding(WARNING, code, message, tuple(row for row, _ in some), tuple(other for _, other in some))


def _rows(count: int, singular: str, several: str) -> str:
    return f"1 row {singular}" if count == 1 else f"{count:,} rows {several}"


def _classes(rows: Sequence[Row], kind: str) -> Iterator[Finding]:
    share, answer = constant_answer(rows)
    places = {row.label for row in rows}
    if kind == CHOICE and len(places) == 1 and len({plain(row.answer.strip()) for row in rows}) > 1:
        message = "the right choice stands at the same place in every row, so the constant answer gets 100 %"
        yield Finding(WARNING, "one place", message)
    elif share == 1.0 and len(rows) > 1:
        yield Finding(
            WARNING,
            "one class",
            f"{answer!r} is right in every row: a model that always says so is perfect; add rows of other "
            "answers, unless that is what the task is to guard",
        )
    elif share >= _LOPSIDED and len(rows) > 1:
        yield Finding(
            WARNING, "lopsided", f"always answering {answer!r} gets {100 * share:.2f} %: accuracy says little"
        )
    else:
        yield Finding(NOTE, "constant answer", f"always answering {answer!r} gets {100 * share:.2f} %")
    if kind == CHOICE:
        yield from _never_right(rows)


def _never_right(rows: Sequence[Row]) -> Iterator[Finding]:
    """Where all rows have the same choices: which are right how often."""
    if len({tuple(map(plain, row.choices)) for row in rows}) > 1:
        return
    counts = Counter(plain(row.answer.strip()) for row in rows)
    never = [choice.strip() for choice in rows[0].choices if plain(choice.strip()) not in counts]
    shares = ", ".join(f"{choice!r} {count:,}" for choice, count in counts.most_common(_SHOWN))
    yield Finding(NOTE, "classes", f"right answers: {shares}")
    if never and len(counts) > 1:
        yield Finding(WARNING, "empty class", f"never the right answer: {', '.join(map(repr, never))}")


def _lengths(rows: Sequence[Row], tokenizer: Any, context: int, kind: str) -> Iterator[Finding]:
    """Of each row with its longest choice or answer, in tokens."""
    texts = [_longest(row) for row in rows]
    counts = [len(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    lengths = sorted(counts)
    middle, high = (lengths[math.ceil(share * len(lengths)) - 1] for share in (0.5, 0.95))
    message = (
        f"half of the rows have up to {middle:,} tokens, 95 % up to {high:,}, the longest {lengths[-1]:,}"
    )
    long = [i for i, length in enumerate(counts, 1) if length > context]
    if kind == TEXT:
        yield Finding(NOTE, "length", f"{message}; {sum(lengths):,} in all, read in windows of {context:,}")
    elif long:
        side = "on the right" if kind in EMBEDDED else "from the left"
        cut = f"{_rows(len(long), 'does', 'do')} not fit into {context:,} tokens, and eval cuts {side}"
        yield Finding(WARNING, "too long", f"{cut}: {message}", tuple(long[:_SHOWN]))
    else:
        yield Finding(NOTE, "length", f"{message}; {context:,} fit")


def _longest(row: Row) -> str:
    """What a model reads at once of a row."""
    if row.pair or row.negatives:
        return max((*row.pair, row.prompt, row.answer, *row.negatives), key=len)
    return joined(row.prompt, max(row.choices or row.accepted, key=len)) if row.prompt else row.text


def _promised(units: int, confidence: float) -> dict[str, float]:
    """The bound that a comparison would show of a model as good as its base (Tango 1998)."""
    z = normal_quantile(confidence)
    promised = {}
    for flips in _FLIPS:
        moved = flips / 2 * units
        same = Pairs(units - 2 * moved, moved, moved, 0.0)
        promised[f"{100 * flips:g} %"] = -difference_bound(same, z)
    return promised


def _enough(needed: dict[str, int | None], units: int, tolerance: Tolerance) -> Iterator[Finding]:
    least = needed[_USUAL]
    if least is None:
        yield Finding(WARNING, _TOLERANCE, "no number of rows shows that nothing at all was lost")
    elif units < least:
        yield Finding(
            WARNING,
            _TOO_FEW,
            f"{units:,} rows (rows of a group, and equal ones, count as one) are fewer than the "
            f"{least:,} that {tolerance.text} needs if {_USUAL} of the answers change",
        )
