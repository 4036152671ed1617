"""The user's data: rows of a JSON Lines file, or a plain text file."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kanna.checked import check_lookable
from kanna.errors import InputError
from kanna.tasks.data import headers, tables
from kanna.tasks.data.encodings import decoded_as
from kanna.tasks.data.mapping import refuse_unmapped
from kanna.tasks.data.scripts import goes_on_without_space
from kanna.tasks.data.sheets import EXCEL, JSON_LINES
from kanna.tasks.data.spoken import Message, as_text, conversation, instruction, instructs, speaks
from kanna.tasks.data.tables import (
    EMBEDDED_KEYS,
    EMBEDDED_SHAPES,
    INSTRUCTION_KEYS,
    KEYS,
    SHAPES,
    Placed,
)
from kanna.tasks.data.units import plain
from kanna.tasks.data.values import cost_of, filled, group_of, string


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        text: What a model would have read and written: the text, or the prompt with its right answer.
        prompt: What it reads; empty for plain text.
        answer: What it should write; empty for plain text.
        group: Name shared by rows that ask for the same fact.
        choices: What to choose from; empty for other rows.
        label: Index of the right choice; None for other rows.
        answers: Every answer that counts as right, `answer` first; empty where there is only the one.
        cost: What one wrong answer to this row costs; 1 unless the row says so.
        extra: The row's other keys, as they were.
        pair: Two texts that are more or less alike; empty for other rows.
        score: How much, by people; None for other rows.
        negatives: What a query must not find before its answer; empty for other rows.
        said: What a user would say in a chat, where `prompt` is laid out for models that know none.
        messages: A conversation, whose last message is the answer; empty for other rows.
        asked_as: What a certain model reads in place of `prompt`; empty where it reads that.
    """

    text: str
    prompt: str = ""
    answer: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    label: int | None = None
    answers: tuple[str, ...] = ()
    cost: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    pair: tuple[str, ...] = ()
    score: float | None = None
    negatives: tuple[str, ...] = ()
    said: str = ""
    messages: tuple[Message, ...] = ()
    asked_as: str = ""

    @property
    def asked(self) -> str:
        """What the model reads before it answers."""
        return self.asked_as or self.prompt

    @property
    def accepted(self) -> tuple[str, ...]:
        """All answers that count as right."""
        return self.answers or (self.answer,)


TABLES = (*JSON_LINES, ".json", ".csv", ".tsv", ".parquet")
_SPREADSHEETS = (*EXCEL, ".xls", ".ods", ".numbers")
_A_FILE = "give a .jsonl, a .csv or a plain text file"


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .jsonl (.ndjson), .json, .csv, .tsv or .parquet file, or a plain text file as one row.

    Raises:
        InputError: Missing, empty or not UTF-8; a line that is no row (its number is given); a table whose
            name says that it is plain text.
    """
    path = Path(path)
    return rows_of(path, read_data(path))


def rows_of(path: Path, data: bytes) -> list[Row]:
    """The same of a file that has been read: `path` says what it is, `data` is what it holds."""
    if path.suffix.lower() not in TABLES:
        text = decoded(path, data)
        headers.refuse_table(path, text)
        return [Row(text)]
    placed = list(fields_of(path, data))
    refuse_unmapped(path, placed)
    rows = [read_row(where, fields) for where, fields in sound(placed)]
    if not rows:
        raise InputError(f"{path} has no rows", f"give lines such as {SHAPES}")
    return rows


def fields_of(path: Path, data: bytes) -> Iterator[Placed]:
    """Place and fields of each row of a table, or the InputError that says why a line is none.

    Raises:
        InputError: Nothing of the file can be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return tables.parquet_rows(path, data)
    text = decoded(path, data)
    if suffix in (".csv", ".tsv"):
        return tables.csv_rows(path, text)
    if suffix == ".json" and text.lstrip().startswith("["):
        return tables.array_rows(path, text)
    return ((where, tables.parsed(where, line)) for where, line in lines_of(path, text))


def sound(placed: Iterable[Placed]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same, with the first error raised."""
    for where, fields in placed:
        if isinstance(fields, InputError):
            raise fields
        yield where, fields


def lines_of(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Place and text of each line of a JSON Lines file that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def check_there(path: Path) -> None:
    """Raise InputError for a file of data that does not exist, or whose name or place cannot be looked at."""
    check_lookable(path, _A_FILE)
    if not path.exists():
        raise InputError(f"{path} does not exist", _A_FILE)


def read_data(path: Path) -> bytes:
    """The bytes of a file of data.

    Raises:
        InputError: Missing, or a spreadsheet.
    """
    if path.suffix.lower() in _SPREADSHEETS:
        raise InputError(
            f"{path} is a spreadsheet, whose columns kanna does not know",
            "make a task of it: kanna task new app.jsonl --from FILE --prompt '{Column}' --label Column; "
            "or save its sheet as CSV UTF-8 (one header line), and give that",
        )
    check_there(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "give a readable file") from error


def decoded(path: Path, data: bytes) -> str:
    """The text of a file as it is, without a byte order mark and with line ends as \\n.

    Raises:
        InputError: It is empty or not UTF-8.
    """
    text = decoded_as(path, data)
    if not text.strip():
        raise InputError(f"{path} is empty", f"give lines such as {SHAPES}, or plain text")
    return text


def read_row(where: str, fields: Mapping[str, Any]) -> Row:
    """A row of what a line holds.

    Raises:
        InputError: It is none; `where` and what was expected are named.
    """
    fields = {key: value for key, value in fields.items() if value is not None}
    group, cost = group_of(fields.get("group", "")), cost_of(where, fields)
    if speaks(fields):
        return _conversation(where, fields, group, cost)
    if instructs(fields):
        return _instruction(where, fields, group, cost)
    if "pair" in fields or "query" in fields:
        return _embedded(where, fields, group, cost)
    if "text" in fields:  # it may be empty; what a model would be asked beside it would go unseen
        other = sorted({"prompt", "answer", "answers", "choices"} & fields.keys())
        if other:
            raise InputError(f"{where}: a row of text, and {', '.join(other)} too", f"use one of {SHAPES}")
        beside = _beside(fields, ("text",))
        return Row(string(where, "text", fields["text"]), group=group, cost=cost, extra=beside)
    extra = {key: value for key, value in fields.items() if key not in KEYS}
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not ({"answer", "answers", "choices"} & fields.keys()):
        raise InputError(f"{where}: expected {SHAPES}, found the keys {sorted(fields)}", "mend that line")
    filled(where, "prompt", prompt)
    if "choices" in fields:
        choices, label = _choices(where, fields)
        right = choices[label]
        return Row(joined(prompt, right), prompt, right, group, choices, label, (), cost, extra)
    answers = _answers(where, fields)
    several = answers if len(answers) > 1 else ()
    return Row(joined(prompt, answers[0]), prompt, answers[0], group, (), None, several, cost, extra)


def _beside(fields: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Keys of a row that kanna has no use for."""
    return {key: value for key, value in fields.items() if key not in (*own, "group", "cost")}


def _instruction(where: str, fields: Mapping[str, Any], group: str, cost: float) -> Row:
    """An instruction with its output."""
    said, prompt, answer = instruction(where, fields)
    extra = _beside(fields, INSTRUCTION_KEYS)
    return Row(joined(prompt, answer), prompt, answer, group, cost=cost, extra=extra, said=said)


def _conversation(where: str, fields: Mapping[str, Any], group: str, cost: float) -> Row:
    """A row of messages: the last one is the answer to all before it."""
    messages = conversation(where, fields)
    before, (_, answer) = messages[:-1], messages[-1]
    extra = _beside(fields, ("messages",))
    return Row(as_text(messages), as_text(before), answer, group, cost=cost, extra=extra, messages=messages)


def _embedded(where: str, fields: Mapping[str, Any], group: str, cost: float) -> Row:
    """A row about embeddings: a pair with its score, or a query with what it should find and what not."""
    wanted = ("text", "pair", "score") if "pair" in fields else ("query", "positive", "negatives")
    strange = {*KEYS, *EMBEDDED_KEYS} & fields.keys() - {*wanted, "group", "cost"}
    if strange or not fields.keys() >= set(wanted):
        raise InputError(
            f"{where}: expected {EMBEDDED_SHAPES}, found the keys {sorted(fields)}", "mend that line"
        )
    extra = _beside(fields, wanted)
    if "pair" in fields:
        first, second = (filled(where, key, fields[key]) for key in ("text", "pair"))
        score = _score(where, fields["score"])
        return Row(
            f"{first}\n{second}", group=group, cost=cost, pair=(first, second), score=score, extra=extra
        )
    query, positive = (filled(where, key, fields[key]) for key in ("query", "positive"))
    negatives = _negatives(where, fields["negatives"], positive)
    return Row(joined(query, positive), query, positive, group, cost=cost, negatives=negatives, extra=extra)


def _score(where: str, score: object) -> float:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not math.isfinite(float(score)):  # type: ignore[arg-type]
        raise InputError(f"{where}: score {score!r} is no number", "write how alike the two are, as 3.5")
    return float(score)  # type: ignore[arg-type]


def _negatives(where: str, given: object, positive: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(
            f"{where}: negatives must be a list of texts, found {given!r}", f"use {EMBEDDED_SHAPES}"
        )
    negatives = tuple(filled(where, "a negative", text) for text in given)
    if plain(positive.strip()) in [plain(text.strip()) for text in negatives]:
        raise InputError(f"{where}: the positive is one of the negatives", "remove it")
    return negatives


def _answers(where: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """All accepted answers, the first one first."""
    given = fields.get("answers", [])
    if not isinstance(given, list):
        raise InputError(f"{where}: answers must be a list, found {given!r}", "write one answer as answer")
    first = [fields["answer"]] if "answer" in fields else []
    accepted = [filled(where, "an answer", answer) for answer in (*first, *given)]
    if not accepted:
        raise InputError(f"{where}: there is no answer", f"use {SHAPES}")
    return tuple(dict.fromkeys(accepted))


def _choices(where: str, fields: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Choices, and the index of the right one; a label may also be its text."""
    choices, label = fields["choices"], fields.get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        raise InputError(f"{where}: choices must be a list of at least 2, found {choices!r}", f"use {SHAPES}")
    texts = tuple(filled(where, "a choice", choice) for choice in choices)
    stripped = [plain(text.strip()) for text in texts]
    if len(set(stripped)) < len(texts):
        raise InputError(f"{where}: the choices {choices!r} hold one twice", "remove it")
    if isinstance(label, str) and plain(label.strip()) in stripped:
        return texts, stripped.index(plain(label.strip()))
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool):
        raise InputError(
            f"{where}: label {label!r} is neither a number nor one of the choices {choices!r}",
            "give the place of the right choice, counted from 0, or its text",
        )
    if not 0 <= label < len(texts):
        raise InputError(
            f"{where}: label {label} of {len(texts)} choices", f"labels are 0 to {len(texts) - 1} there"
        )
    return texts, label


def task_kind(rows: Sequence[Row]) -> str:
    """choice, answer, text, similarity or retrieval: what the rows of a task are.

    Raises:
        InputError: No row, or rows of several kinds.
    """
    if not rows:
        raise InputError("the task has no rows", f"give lines such as {SHAPES}")
    kinds = [_kind(row) for row in rows]
    read = ["messages" if row.messages else kind for row, kind in zip(rows, kinds, strict=True)]
    other = next((i for i, kind in enumerate(read) if kind != read[0]), None)
    if other is not None:
        raise InputError(
            f"row 1 of the task is of kind {read[0]} and row {other + 1} of kind {read[other]}",
            "make a task of each kind",
        )
    return kinds[0]


def _kind(row: Row) -> str:
    if row.pair or row.negatives:
        return "similarity" if row.pair else "retrieval"
    return "choice" if row.choices else "answer" if row.prompt else "text"


def joined(prompt: str, answer: str, joiner: str | None = None) -> str:
    """Prompt and answer as one text, with a space between them unless one is there or none belongs there.

    Args:
        joiner: What stands between them, in the place of all spaces that are there; None decides as above.
    """
    if joiner is not None:
        return f"{prompt.rstrip(' ')}{joiner}{answer.lstrip(' ')}"
    there = prompt[-1:].isspace() or answer[:1].isspace()
    return prompt + answer if there or goes_on_without_space(prompt, answer) else f"{prompt} {answer}"


def rejoined(rows: Sequence[Row], joiner: str) -> tuple[Row, ...]:
    """The same, whose texts have something else between prompt and answer; conversations stay as they are."""
    return tuple(
        replace(row, text=joined(row.prompt, row.answer, joiner))
        if row.prompt and row.answer and not row.messages
        else row
        for row in rows
    )
