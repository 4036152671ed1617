"""Rows: every file format gives the same ones, and what is none is named with its place."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, joined, read_rows, task_kind
from kanna.tasks.data.task import load_tasks, names_of

CHOICE = {
    "prompt": "One, two,",
    "choices": [" three", " four", " five"],
    "label": 1,
    "group": "n",
    "cost": 2.5,
}
ANSWER = {
    "prompt": 'She said "yes, sir";\nthen',
    "answer": " left",
    "answers": [" left", "went"],
    "topic": "é",
}
TEXT = {"text": 'Line one\nline two, 日本語; "quoted"', "source": "book"}
SHAPES = {"choice": CHOICE, "answer": ANSWER, "text": TEXT}
EXPECTED = {
    "choice": Row("One, two, four", "One, two,", " four", "n", (" three", " four", " five"), 1, (), 2.5, {}),
    "answer": Row(
        'She said "yes, sir";\nthen left',
        'She said "yes, sir";\nthen',
        " left",
        answers=(" left", "went"),
        extra={"topic": "é"},
    ),
    "text": Row(TEXT["text"], extra={"source": "book"}),
}


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_table(
    rows: list[dict[str, Any]], separator: str = ",", spread: bool = False, encoding: str = "utf-8"
) -> bytes:
    """By the csv module; choices as a JSON list in one cell, or with `spread` in cells of their own."""
    flat = []
    for row in rows:
        own = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
        if spread and "choices" in row:
            del own["choices"]
            own |= {f"choice_{i}": choice for i, choice in enumerate(row["choices"])}
        flat.append(own)
    into = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(into, names, delimiter=separator)
    writer.writeheader()
    writer.writerows(flat)
    return into.getvalue().encode(encoding)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    into = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), into)
    return into.getvalue()


FORMATS = {
    "lines": (".jsonl", as_jsonl),
    "other name": (".NDJSON", as_jsonl),
    "lines in json": (".json", as_jsonl),
    "array": (".json", as_array),
    "comma": (".csv", as_table),
    "semicolon": (".csv", lambda rows: as_table(rows, ";")),
    "bom": (".csv", lambda rows: as_table(rows, ";", True, "utf-8-sig")),
    "columns": (".csv", lambda rows: as_table(rows, ",", True)),
    "tab": (".tsv", lambda rows: as_table(rows, "\t")),
    "parquet": (".parquet", as_parquet),
}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problem(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_rows(path)
    assert refused.value.remedy
    return refused.value.problem


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_rows(form: str, shape: str, tmp_path: Path) -> None:
    suffix, make = FORMATS[form]
    path = write(tmp_path / f"task{suffix}", make([SHAPES[shape], SHAPES[shape]]))
    assert read_rows(path) == [EXPECTED[shape]] * 2


@pytest.mark.parametrize("form", ["lines", "array", "comma", "parquet"])
def test_keys_that_some_rows_lack(form: str, tmp_path: Path) -> None:
    """pandas writes null, a table an empty cell: both mean that the row has no such key."""
    suffix, make = FORMATS[form]
    first = {"prompt": "a", "answer": "b", "group": "g", "cost": 3.0}
    second = {"prompt": "c", "answer": "d", "group": None, "cost": None, "label": None, "choices": None}
    rows = read_rows(write(tmp_path / f"task{suffix}", make([first, second])))
    assert rows == [Row("a b", "a", "b", "g", cost=3.0), Row("c d", "c", "d")]


def test_plain_text_is_one_row(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "book.txt", "\ufeffa\r\nb\n")) == [Row("a\nb\n")]


BAD_LINES = [
    ('{"prompt": "a"', "not JSON"),
    ("nonsense", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "expected an object, found list"),
    ('"a"', "expected an object, found str"),
    ("{}", r"found the keys []"),
    ('{"question": "a", "answer": "b"}', "found the keys ['answer', 'question']"),
    ('{"prompt": 5, "answer": "b"}', "expected"),
    ('{"prompt": " ", "answer": "b"}', "prompt is empty"),
    ('{"prompt": "a", "answer": ""}', "an answer is empty"),
    ('{"prompt": "a", "answer": " "}', "an answer is empty"),
    ('{"prompt": "a", "answer": 42}', "an answer must be a text, found 42"),
    ('{"prompt": "a", "answer": "\\ud800"}', "half a character"),
    ('{"prompt": "a", "answers": []}', "there is no answer"),
    ('{"prompt": "a", "answers": "b"}', "answers must be a list"),
    ('{"prompt": "a", "answers": ["b", ""]}', "an answer is empty"),
    ('{"prompt": "a", "choices": ["b", "c"]}', "label None is neither a number nor one of the choices"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": 2}', "label 2 of 2 choices"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": -1}', "label -1 of 2 choices"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": 0.5}', "label 0.5 is neither"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": "d"}', "label 'd' is neither"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": "1"}', "label '1' is neither"),
    ('{"prompt": "a", "choices": ["b", "c"], "label": [0]}', "label [0] is neither"),
    ('{"prompt": "a", "choices": ["b", ""], "label": 0}', "a choice is empty"),
    ('{"prompt": "a", "choices": ["b", 1], "label": 0}', "a choice must be a text"),
    ('{"prompt": "a", "choices": ["b", "c", "b"], "label": 0}', "hold one twice"),
    ('{"prompt": "a", "choices": ["b", " b"], "label": 0}', "hold one twice"),
    ('{"prompt": "a", "choices": ["b"], "label": 0}', "at least 2"),
    ('{"prompt": "a", "choices": "b", "label": 0}', "at least 2"),
    ('{"prompt": "a", "answer": "b", "cost": "much"}', "cost 'much' is no number"),
    ('{"prompt": "a", "answer": "b", "cost": -1}', "cost -1 is no number"),
    ('{"prompt": "a", "answer": "b", "cost": NaN}', "cost nan is no number"),
    ('{"prompt": "a", "answer": "b", "cost": Infinity}', "cost inf is no number"),
    ('{"prompt": "a", "answer": "b", "cost": true}', "cost True is no number"),
    (f'{{"prompt": "a", "answer": "b", "cost": 1{"0" * 400}}}', "is no number"),
    ('{"text": 5}', "text must be a text, found 5"),
    ('{"text": "a", "prompt": "b", "answer": "c"}', "a row of text, and answer, prompt too"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=[str(i) for i in range(len(BAD_LINES))])
def test_a_line_that_is_no_row(line: str, said: str, tmp_path: Path) -> None:
    content = f'{{"prompt": "a", "answer": "b"}}\n\n{line}\n{{"prompt": "c", "answer": "d"}}\n'
    found = problem(write(tmp_path / "task.jsonl", content))
    assert "task.jsonl, line 3: " in found and said in found


@pytest.mark.parametrize(
    ("label", "place"), [(0, 0), (2, 2), (1.0, 1), ("four", 1), (" four", 1), ("four ", 1), (" five", 2)]
)
def test_labels(label: Any, place: int, tmp_path: Path) -> None:
    row = read_rows(write(tmp_path / "a.jsonl", json.dumps(CHOICE | {"label": label})))[0]
    assert (row.label, row.answer) == (place, CHOICE["choices"][place])


def test_several_answers_keep_their_order_and_lose_repetitions(tmp_path: Path) -> None:
    given = {"prompt": "a", "answer": "x", "answers": ["y", "x", "z"]}
    row = read_rows(write(tmp_path / "a.jsonl", json.dumps(given)))[0]
    assert (row.answer, row.answers, row.text) == ("x", ("x", "y", "z"), "a x")
    only = read_rows(write(tmp_path / "b.jsonl", json.dumps({"prompt": "a", "answers": ["y"]})))[0]
    assert (only.answer, only.answers) == ("y", ())


def test_a_table_with_more_than_ten_choices(tmp_path: Path) -> None:
    """choice_10 comes after choice_9, not after choice_1."""
    choices = [f"c{i}" for i in range(12)]
    rows = [{"prompt": "p", "choices": choices, "label": i} for i in range(12)]
    found = read_rows(write(tmp_path / "a.csv", as_table(rows, spread=True)))
    assert [row.answer for row in found] == choices
    assert all(row.choices == tuple(choices) for row in found)


def test_a_table_of_a_spreadsheet(tmp_path: Path) -> None:
    """Capitals in the header, spaces around it, rows of fewer choices, empty rows at the end, CRLF."""
    content = (
        "\ufeffPrompt; Choice_a;choice_b ;choice_c;Label;;Remark\r\n"
        '"One;\r\ntwo";three;four;;1;;\r\n'
        "Five;six;seven;eight;eight;;he said "
        "so"
        "\r\n"
        ";;;;;;\r\n;;;;;;\r\n\r\n"
    )
    assert read_rows(write(tmp_path / "a.csv", content)) == [
        Row("One;\ntwo four", "One;\ntwo", "four", choices=("three", "four"), label=1),
        Row(
            "Five eight",
            "Five",
            "eight",
            choices=("six", "seven", "eight"),
            label=2,
            extra={"Remark": "he said so"},
        ),
    ]


BAD_TABLES = [
    ("prompt,answer\na,b\nc,d,e\n", "line 3: the header has 2 columns, this row 3"),
    ("prompt,answer\na,b\nc\n", "line 3: the header has 2 columns, this row 1"),
    ('prompt,answer\n"a\nb",c\nd,"e\n', "line 4: unexpected end of data"),
    ('prompt,answer\na,b\nc,"d"e\n', "line 3: "),
    ('prompt,"answer\na,b\n', "line 1: unexpected end of data"),
    ("prompt,answer,prompt\na,b,c\n", "names a column twice"),
    ("prompt,answer,Prompt\na,b,c\n", "names a column twice"),
    ("prompt,answer\n", "has no rows"),
    ("prompt,answer\n,\n", "has no rows"),
    ("question,answer\na,b\n", "has the columns 'question', 'answer', and none of"),
    ("a question\nanother\n", "has the columns 'a question', and none"),
    ('prompt,answer\n"a\nb",c\nd,\n', "line 4: expected"),
    ("prompt,choices,label\na,b|c,0\n", "line 2: choices must be a JSON list, found 'b|c'"),
    ('prompt,choices,label\na,"[""b"", ""c""]",2\n', "line 2: label 2 of 2 choices"),
    ("prompt,choice_1,choice_2,label\na,b,c,1\n", "the columns of choices are choice_1, choice_2"),
    ("prompt,choice_0,choice_2,label\na,b,c,1\n", "the columns of choices are choice_0, choice_2"),
    ("prompt,choice_0,choice_1,choice_2,label\na,b,,c,1\n", "line 2: choice_1 is empty and a later"),
    ("prompt,choice_0,choice_1,label\na,1,2,1\n", "could be the choice '1' or the one at that place, '2'"),
    ('prompt,choice_0,choice_1,choices,label\na,1,2,"[""1"", ""2""]",1\n', "choices, and choice_0 too"),
    ('prompt;answer;cost\na;b;"2,5"\n', "line 2: cost '2,5' is no number"),
    ("prompt,answer,cost\na,b,nan\n", "line 2: cost 'nan' is no number"),
]


@pytest.mark.parametrize(("content", "said"), BAD_TABLES, ids=[str(i) for i in range(len(BAD_TABLES))])
def test_a_table_that_is_wrong(content: str, said: str, tmp_path: Path) -> None:
    assert said in problem(write(tmp_path / "a.csv", content))


def test_labels_of_a_table_whose_choices_are_numbers(tmp_path: Path) -> None:
    content = "prompt,choice_0,choice_1,choice_2,label\na,1,2,3,3\nb,0,1,2,1\nc,5,6,7,2\n"
    found = read_rows(write(tmp_path / "a.csv", content))
    assert [row.answer for row in found] == ["3", "1", "7"]


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    long = "word " * 60_000
    assert read_rows(write(tmp_path / "a.csv", as_table([{"text": long}])))[0].text == long


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"\xef\xbb\xbf \n", "is empty"),
        ("a.txt", b"", "is empty"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'[{"text": "a"}', "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b'[{"text": "a"}, 5]', "element 2: expected an object, found int"),
        ("a.json", b'[{"text": "a"}, {"prompt": "b"}]', "element 2: expected"),
        ("a.json", b'{\n"text": "a"\n}', "line 1: not JSON"),
        ("a.parquet", b"PAR1", "is no Parquet file"),
        ("a.xlsx", b"PK\x03\x04", "is a spreadsheet"),
        ("a.csv", "prompt,answer\na,b\ncafé,d\n".encode("cp1252"), "line 3 is not UTF-8"),
        ("a.tsv", "prompt\tanswer\na\tb\n".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_files_that_are_wrong(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    found = problem(write(tmp_path / name, content))
    assert str(tmp_path / name) in found and said in found


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt"])
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    assert "does not exist" in problem(tmp_path / name)
    (tmp_path / name).mkdir()
    problem(tmp_path / name)


def test_a_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": " "}]
    assert "row 2: an answer is empty" in problem(write(tmp_path / "a.parquet", as_parquet(rows)))


def test_the_encoding_of_a_spreadsheet_is_guessed(tmp_path: Path) -> None:
    for encoding, named in (("utf-16", "iconv -f UTF-16"), ("cp1252", "iconv -f CP1252")):
        path = write(tmp_path / "a.csv", "prompt,answer\ncafé,b\n".encode(encoding))
        with pytest.raises(InputError, match="CSV UTF-8") as refused:
            read_rows(path)
        assert named in refused.value.remedy


def test_rows_of_several_kinds_make_no_task(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", as_jsonl([ANSWER, ANSWER, CHOICE])))
    with pytest.raises(InputError, match="row 1 of the task is of kind answer and row 3 of kind choice"):
        task_kind(rows)


def test_a_file_is_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl([ANSWER]))
    monkeypatch.chdir(tmp_path)
    for again in (path, Path("a.jsonl"), tmp_path / "b" / ".." / "a.jsonl"):
        with pytest.raises(InputError, match="given twice"):
            load_tasks([path, again])


def test_files_of_one_name_have_different_ones_as_tasks(tmp_path: Path) -> None:
    paths = []
    for folder in ("x/data", "y/data", "z"):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(write(tmp_path / folder / "a.jsonl", as_jsonl([ANSWER])))
    paths.append(write(tmp_path / "b.jsonl", as_jsonl([CHOICE] * 3)))
    found = load_tasks(paths, limit=2)
    assert [task.name for task in found] == ["x/data/a.jsonl", "y/data/a.jsonl", "z/a.jsonl", "b.jsonl"]
    assert [len(task.rows) for task in found] == [1, 1, 1, 2]
    assert names_of([Path("/a.jsonl")]) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("prompt", "answer", "whole"),
    [
        ("答案\uff1a", "近灯", "答案\uff1a近灯"),
        ("答案:", "A", "答案: A"),
        ("答案:", "近灯", "答案:近灯"),
        ("答案\uff1a", "A", "答案\uff1aA"),
        ("猫 =>", "cat", "猫 => cat"),
        ("cat = 猫?", "yes", "cat = 猫? yes"),
        ("猫 =>", "犬", "猫 =>犬"),
        ("猫 2", "犬", "猫 2 犬"),
        ("これは", "犬", "これは犬"),
        ("คำตอบ", "แมว", "คำตอบแมว"),
        ("서울은", "크다", "서울은 크다"),
        ("Chinese for cat:", "猫", "Chinese for cat: 猫"),
        ("答案\uff1a ", "近灯", "答案\uff1a 近灯"),
        ("1 +", "2", "1 + 2"),
        ("?", "yes", "? yes"),
    ],
)
def test_a_space_stands_where_a_script_has_one(prompt: str, answer: str, whole: str) -> None:
    assert joined(prompt, answer) == whole
