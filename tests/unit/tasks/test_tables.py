"""Tables as programs write them, and files whose name does not say what they hold."""

import json
from pathlib import Path

import pytest

from kanna.errors import InputError
from kanna.tasks.data.check import check_task
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_task


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def problem(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_rows(path)
    return refused.value.problem


READ = {
    "separators in a quoted name": (
        '"prompt";"answer";"a, b, or ""c"", or d"\n"x, y";"1";"2"\n"z";"3";""\n',
        ["x, y", "z"],
    ),
    "a line end in a quoted name": ('prompt;answer;"a,\nb, c"\nx;1;2\nz;3;4\n', ["x", "z"]),
    "columns without a name": ("prompt,answer,,,\nx,1,,,\nz,3, ,,\n", ["x", "z"]),
    "cells beyond the header": ("prompt,answer\nx,1,,\nz,3,\n", ["x", "z"]),
    "an index": (",prompt,answer\n0,x,1\n1,z,3\n", ["x", "z"]),
    "an index, and columns without a name": (",prompt,answer,\n0,x,1,\n1,z,3,\n", ["x", "z"]),
    "a line for spreadsheets": ("sep=;\nprompt;answer\nx, y;1\nz;3\n", ["x, y", "z"]),
    "the same with a mark and quotes": ('\ufeff"sep=,"\r\nprompt,answer\r\nx;y,1\r\nz,3\r\n', ["x;y", "z"]),
    "the same with tabs": ("SEP=\t\nprompt\tanswer\nx,y\t1\nz\t3\n", ["x,y", "z"]),
    "empty lines before the header": ("\n\nprompt;answer\nx, y;1\nz;3\n", ["x, y", "z"]),
    "empty lines, and one for spreadsheets": ("\nsep=;;;\nprompt;answer;\nx, y;1;\nz;3;\n", ["x, y", "z"]),
    "a sign no header would be parted by": ("sep=~\nprompt~answer\nx,y~1\nz~3\n", ["x,y", "z"]),
    "quoted text of several lines": ('prompt,answer\n"x, y\nz",1\nb,2\n', ["x, y\nz", "b"]),
    "quoted text of several lines, by tabs": ('prompt\tanswer\n"x\ny"\t1\nb\t2\n', ["x\ny", "b"]),
}


@pytest.mark.parametrize("what", READ)
def test_tables_that_are_read(what: str, tmp_path: Path) -> None:
    content, prompts = READ[what]
    assert [row.prompt for row in read_rows(write(tmp_path / "a.csv", content))] == prompts


REFUSED = {
    "text in a column without a name": (
        "prompt,answer,,\nx,1,,\n1,000 and,more,2,\n",
        "line 3: 'more' stands in column 3",
    ),
    "cells beyond the header": ("prompt,answer\nx,1,2\n", "line 2: the header has 2 columns, this row 3"),
    "too few cells": ("prompt,answer,,\nx\n", "line 2: the header has 4 columns, this row 1"),
    "places count the line for spreadsheets": ("sep=;\nprompt;answer\nx;1\ny\n", "line 4: the header has 2"),
    "places count empty lines": ("\n\nprompt,answer\nx,1\ny\n", "line 5: the header has 2"),
    "names twice": ("prompt,answer,,a,a\nx,1,,,\n", "names a column twice"),
    "nothing but a line for spreadsheets": ("sep=;\n", "has no rows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tables_that_are_refused(what: str, tmp_path: Path) -> None:
    content, said = REFUSED[what]
    assert said in problem(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_quotation_mark_swallows_no_row(column: int, tmp_path: Path) -> None:
    """With tabs it is mostly part of the text: a cell would go on to the same column further down."""
    rows = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"], ["j", "k", "l"]]
    rows[1][column] = '"' + rows[1][column]
    rows[2][column] += '"'
    lines = ["prompt\tanswer\tnote", *map("\t".join, rows)]
    said = problem(write(tmp_path / "a.tsv", "\n".join(lines) + "\n"))
    assert "line 3: a quotation mark makes one cell of 2 lines" in said
    assert not check_task(tmp_path / "a.tsv").passed


TWICE = '{"prompt": "a", "answer": "b", "answer": "c"}'


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n' + TWICE, "line 2: the key 'answer' stands twice"),
        ("a.jsonl", '{"text": "a", "more": {"x": 1, "x": 2}}', "line 1: the key 'x' stands twice"),
        ("a.json", f'[\n{{"prompt": "x", "answer": "y"}},\n {TWICE}]', "element of line 3: the key 'answer'"),
    ],
)
def test_a_key_that_stands_twice_is_refused(name: str, content: str, where: str, tmp_path: Path) -> None:
    assert where in problem(write(tmp_path / name, content))


ROWS = [{"prompt": "one", "answer": "two"}, {"prompt": "three", "answer": "four"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["a.jsonlines", "a.jl", "a.NDJSON"])
def test_other_names_of_json_lines(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, JSONL)
    assert [row.answer for row in read_rows(path)] == ["two", "four"]
    split = split_task(path, tmp_path / "parts", share=0.5)
    assert split.rows == (1, 1) and split.test.read_text() in JSONL


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (JSONL, ".jsonl"),
        ("# made by a program\n" + JSONL, ".jsonl"),
        (json.dumps(ROWS, indent=2), ".jsonl"),
        ("prompt\tanswer\na\tb\n", ".tsv"),
        ("id;Text;Label\n1;a;b\n", ".csv"),
    ],
)
def test_a_table_by_the_name_of_a_text_is_refused(content: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", content)
    with pytest.raises(InputError, match="its name says that it is plain text") as refused:
        read_rows(path)
    assert refused.value.remedy == f"rename it to rows{suffix}"


@pytest.mark.parametrize(
    "content", ["{a} set\n", "{1, 2}", "The text, and the label\nof it.\n", "[1] A note\n{}\n", "prompt\nx\n"]
)
def test_a_text_is_a_text(content: str, tmp_path: Path) -> None:
    assert [row.text for row in read_rows(write(tmp_path / "a.txt", content))] == [content]
