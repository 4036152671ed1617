"""Instructions and conversations: what a row of each is, in which files, and what is none."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import chatting
import pyarrow
import pytest
from chatting import said
from pyarrow import parquet

from kanna.errors import InputError
from kanna.tasks.data.check import check_task
from kanna.tasks.data.overlap import shared
from kanna.tasks.data.rows import Row, read_row, read_rows, task_kind
from kanna.tasks.data.split import split_task
from kanna.tasks.data.spoken import Message
from kanna.tasks.data.task import Task
from kanna.tasks.tokens.chat import as_asked

INSTRUCTION = {"instruction": "Add them.", "input": "2, 3", "output": "5", "group": "sums", "level": "easy"}
TALK = {**said("Hi?", "Fine.", "And you?", "Good.", system="Be brief."), "source": "made up"}
EXPECTED = {
    "instruction": Row(
        "Add them.\n\n2, 3\n\nAnswer: 5",
        "Add them.\n\n2, 3\n\nAnswer:",
        "5",
        "sums",
        extra={"level": "easy"},
        said="Add them.\n\n2, 3",
    ),
    "messages": Row(
        "system: Be brief.\n\nuser: Hi?\n\nassistant: Fine.\n\nuser: And you?\n\nassistant: Good.",
        "system: Be brief.\n\nuser: Hi?\n\nassistant: Fine.\n\nuser: And you?",
        "Good.",
        extra={"source": "made up"},
        messages=tuple(Message(**message) for message in TALK["messages"]),
    ),
}
ROWS: dict[str, dict[str, Any]] = {"instruction": INSTRUCTION, "messages": TALK}


def as_csv(row: dict[str, Any]) -> bytes:
    into = io.StringIO()
    # Only the keys that kanna knows are read whatever their capitals.
    names = {key: key if key in ("level", "source") else key.title() for key in row}
    cells = {names[key]: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()}
    writer = csv.DictWriter(into, list(cells))
    writer.writeheader()
    writer.writerow(cells)
    return into.getvalue().encode()


def as_parquet(row: dict[str, Any]) -> bytes:
    into = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([row, row | {"group": None}]), into)
    return into.getvalue()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_gives_the_same_row(name: str, suffix: str, tmp_path: Path) -> None:
    row, path = ROWS[name], tmp_path / f"rows{suffix}"
    written = {
        ".jsonl": lambda: json.dumps(row).encode(),
        ".json": lambda: json.dumps([row]).encode(),
        ".csv": lambda: as_csv(row),
        ".parquet": lambda: as_parquet(row),
    }
    path.write_bytes(written[suffix]())
    rows = read_rows(path)
    assert rows[0] == EXPECTED[name]
    assert task_kind(rows) == "answer"


def test_an_input_may_be_missing() -> None:
    alone = [{"input": ""}, {"input": " "}, {"input": None}, {}]
    rows = [read_row("here", {"instruction": "Say five.", "output": "5", **row}) for row in alone]
    assert {(row.prompt, row.said) for row in rows} == {("Say five.\n\nAnswer:", "Say five.")}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi?"}, fields]}


FINE = {"role": "assistant", "content": "Fine."}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (message(content="Fine."), "here, message 2 has no role"),
        (message(role="assistant"), "here, message 2 has no content"),
        (message(role="assistant", content=None), "here, message 2 has no content"),
        (message(role="bot", content="Fine."), "the role 'bot' is unknown"),
        (message(**FINE, name="Ann"), "message 2 has the key 'name'"),
        (message(**FINE, tool_calls=[]), "message 2 has the key 'tool_calls'"),
        (message(role="assistant", content=" "), "message 2: content is empty"),
        (message(role="assistant", content=[{"type": "text"}]), "message 2: content must be a text"),
        (message(role="user", content="Hi?"), "the last message is of user"),
        (
            {"messages": [FINE, *message(**FINE)["messages"]]},
            "the first message is the assistant's",
        ),
        ({"messages": []}, "messages must be a list of messages"),
        ({"messages": "Hi?"}, "messages must be a list of messages"),
        ({"messages": ["Hi?"]}, "message 1: expected an object"),
        ({**TALK, "prompt": "Hi?"}, "a row with messages, and prompt too"),
        ({**TALK, **INSTRUCTION}, "a row of messages, and instruction, output too"),
        ({**INSTRUCTION, "text": "Hi?"}, "a row with instruction, and text too"),
        ({**INSTRUCTION, "prompt": "Hi?", "answer": "x"}, "a row with instruction, and answer, prompt too"),
        ({"instruction": "Hi?"}, "an instruction without an output"),
        ({"instruction": "Hi?", "output": ""}, "output is empty"),
        ({"instruction": "", "output": "x"}, "instruction is empty"),
        ({"instruction": "Hi?", "output": "x", "input": 3}, "input must be a text"),
    ],
)
def test_what_is_no_row_is_named(row: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as caught:
        read_row("here", row)
    assert why in caught.value.problem and caught.value.problem.startswith("here")


def test_keys_of_the_users_own_stay_their_own() -> None:
    asked = {"prompt": "Hi?", "answer": "Fine."}
    own = {"instruction": "be brief", "input": "x", "messages": "3"}
    assert read_row("here", asked | own).extra == own
    assert read_row("here", {"text": "Hi?", "output": "x"}).extra == {"output": "x"}


def test_capitals_of_a_column_of_the_users_own_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Prompt,Answer,Input,Messages\nHi?,Fine.,x,3\n")
    (row,) = read_rows(path)
    assert row.extra == {"Input": "x", "messages": "3"}


def test_kinds_of_rows_do_not_mix() -> None:
    rows = [read_row("here", row) for row in (INSTRUCTION, {"prompt": "Hi?", "answer": "Fine."}, TALK)]
    assert task_kind(rows[:2]) == "answer"
    with pytest.raises(InputError, match="row 1 of the task is of kind answer and row 3 of kind messages"):
        task_kind(rows)


def test_a_table_named_as_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("instruction,input,output\nAdd them.,2 3,5\n")
    with pytest.raises(InputError, match="holds the rows of a table"):
        read_rows(path)


def rows_of(*rows: dict[str, Any]) -> list[Row]:
    return [read_row("here", row) for row in rows]


def test_shared_questions_are_found_across_kinds_of_rows() -> None:
    data = rows_of(
        said("Hi?", "Fine.", "And  you?", "Good.", system="Be brief."),
        {"instruction": "Add them.", "input": "2, 3", "output": "5"},
        said("Thanks!", "Welcome."),
    )

    def numbers(*rows: dict[str, Any]) -> list[int]:
        return [number for number, _ in shared(data, rows_of(*rows))]

    asked = [{"prompt": "Hi?", "answer": "x"}, {"prompt": "Add them.\n\n2, 3", "answer": "x"}]
    assert numbers(*asked, {"prompt": "And you?", "answer": "x"}) == [1, 2]
    assert numbers(said("Hi?", "Bad.")) == [1]  # whoever is told to be brief is asked the same
    assert numbers(said("Hi?", "Fine.", "And you?", "Bad.")) == [1]
    assert numbers(said("Ho?", "Fine.", "And you?", "Bad."), said("Hi?", "Fine.", "Thanks!", "Bad.")) == []
    assert numbers({"instruction": "Add them.", "input": "2, 3", "output": "6"}) == [2]
    assert numbers({"instruction": "Add them.", "input": "2, 4", "output": "6"}) == []


def test_tasks_of_them_are_checked_and_split(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    lines = [json.dumps(said(f"What is {i} and {i % 7}?", f"It is {i + i % 7}.")) for i in range(20)]
    path.write_text("\n".join([*lines, lines[0], json.dumps(message(role="assistant"))]) + "\n")
    result = check_task(path)
    assert (result.kind, result.rows) == ("answer", 21)
    found = {finding.code: finding for finding in result.findings}
    assert found["duplicates"].rows == (21,) and "message 2 has no content" in found["no row"].message
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    parts = split_task(path, tmp_path / "out", seed=1)
    both = [part.read_text().splitlines() for part in (parts.validation, parts.test)]
    assert sorted(both[0] + both[1]) == sorted([*lines, lines[0]])
    assert not set(both[0]) & set(both[1])  # the row that stands there twice is on one side


def test_a_task_of_them_is_asked_through_the_template() -> None:
    tokens = chatting.tokenizer()
    talk = Task("talk", "answer", tuple(rows_of(said("hi", "fine", "you", "well"))), "")
    asked = as_asked(talk, tokens, chat=False)
    assert asked.templated
    assert chatting.ids(asked.rows[0].asked) == chatting.ids(
        "<s> <|user|> hi <|end|> and <|assistant|> fine <|end|> and <|user|> you <|end|> and <|assistant|>"
    )
    assert asked.rows[0].prompt == talk.rows[0].prompt  # as it is compared with others, and shown
    told = Task("told", "answer", tuple(rows_of({"instruction": "hi", "input": "you", "output": "fine"})), "")
    assert as_asked(told, tokens, chat=False) == told
    said_so = as_asked(told, tokens, chat=True)
    assert not said_so.templated and said_so.rows[0].asked == "hi\n\nyou"
    with pytest.raises(InputError, match="the messages of talk are read through a chat template"):
        as_asked(talk, chatting.tokenizer(None), chat=False)
