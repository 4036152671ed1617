"""Tasks out of tables of any columns: encodings, workbooks, templates, choices, and what cannot be one."""

import datetime
import json
import shlex
from pathlib import Path

import openpyxl
import pytest

from kanna.cli.main import main
from kanna.errors import InputError
from kanna.tasks.data.encodings import decoded_as, guessed
from kanna.tasks.data.mapping import Columns, rows_from
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.sheets import read_sheet, written

TICKETS = """Ticket ID,Message,Category,Agent
1,My invoice is wrong,billing,Bob
2,"It crashes, every time",technical,Ann
3,請求書が届きません,billing,Bob
4,,account,Ann
5,I can not log in,account,Ann
6,Where is my receipt?,,Bob
7,Screen stays black,technical,Bob
8,"Said ""no"", twice",billing,Ann
"""
ASKED = Columns("Ticket: {Message}\nCategory:", label="Category")


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS, encoding="utf-8")
    return path


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(shlex.split(command))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_cells_fill_the_template_and_labels_are_the_choices(tickets):
    made = rows_from(tickets, ASKED)
    assert made.choices == ("account", "billing", "technical")
    assert [row["label"] for row in made.rows] == ["billing", "technical", "billing", "account", "technical",
                                                   "billing"]  # fmt: skip
    assert made.rows[1]["prompt"] == "Ticket: It crashes, every time\nCategory:"
    assert made.rows[5]["prompt"] == 'Ticket: Said "no", twice\nCategory:'
    assert [place.rpartition(" ")[2] for place in made.left_out] == ["5", "7"]


def test_several_columns_braces_groups_and_capitals(tickets):
    columns = Columns("{{{ticket id}}} {Message}", answer="agent", group="Category")
    made = rows_from(tickets, columns)
    assert made.rows[0] == {"prompt": "{1} My invoice is wrong", "answer": "Bob", "group": "billing"}
    without_group = next(row for row in made.rows if "receipt" in row["prompt"])
    assert "group" not in without_group and made.choices == ()


def test_what_is_drawn_depends_on_the_seed_alone(tickets):
    made = rows_from(tickets, ASKED)
    assert made.sample(3) == made.sample(3) and len(made.sample()) == 3
    assert len({json.dumps(made.sample(seed)) for seed in range(20)}) > 3
    assert all(row in made.rows for row in made.sample())


def test_choices_may_be_more_than_the_table_has(tickets):
    given = ("account", "billing", "technical", "other")
    made = rows_from(tickets, Columns("{Message}", label="Category", choices=given))
    assert made.choices == given and "'other'" in made.notes[0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns("{Massage}", label="Category"), "'Massage'"),
        (Columns("Message", label="Category"), "names no column"),
        (Columns("{Message}", label="Kind"), "'Kind'"),
        (Columns("{Message}"), "in one way"),
        (Columns("{Message}", label="Category", answer="Agent"), "in one way"),
        (Columns("{Message}", answer="Agent", choices=("a", "b")), "without a column of labels"),
        (Columns("{Message}", label="Category", choices=("billing", "account")), "line 3"),
        (Columns("{Message}", label="Ticket ID"), "too many"),
        (Columns("{Message}", label="Category", group="Team"), "'Team'"),
    ],
)
def test_what_makes_no_task(tickets, columns, said):
    with pytest.raises(InputError) as error:
        rows_from(tickets, columns)
    assert said in f"{error.value.problem}; {error.value.remedy}"


def test_one_value_is_nothing_to_choose_from(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Q,L\na,x\nb,x\n")
    with pytest.raises(InputError, match="every row"):
        rows_from(path, Columns("{Q}", label="L"))


def test_labels_that_differ_by_capitals_are_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Q,L\na,Yes\nb,yes\nc,no\nd,no\ne,yes\n")
    made = rows_from(path, Columns("{Q}", label="L"))
    assert made.choices == ("no", "Yes", "yes") and "capitals" in made.notes[0]


# ruff: noqa: RUF001
# What is written, and the encodings that spreadsheets where it is written save it in.
_WRITTEN = {
    "カテゴリ,本文\n請求,領収書の再発行をお願いします\n": ("cp932", "euc_jp", "utf-16"),
    "类别,内容\n账单,我的发票有问题，请尽快处理\n": ("gb18030", "utf-16"),
    "類別,內容\n帳單,我的發票有問題，請盡快處理\n": ("big5", "utf-16"),
    "분류,내용\n청구,청구서가 도착하지 않았습니다\n": ("euc_kr", "utf-16-le"),
    "Catégorie,Texte\nfacture,Où est ma facture déjà payée?\n": ("cp1252", "utf-16", "utf-16-be"),
}


@pytest.mark.parametrize(
    ("text", "encoding"), [(text, name) for text, names in _WRITTEN.items() for name in names]
)
def test_the_encoding_is_named_and_read(tmp_path, text, encoding):
    """By what it decodes to: cp932 and its like have several names."""
    path = tmp_path / "t.csv"
    data = text.encode(encoding)
    path.write_bytes(data)
    assert decoded_as(path, data, guessed(data)) == text
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert f"--encoding {guessed(data)}" in error.value.remedy
    columns = text.split("\n")[0].split(",")
    sheet = read_sheet(path, encoding=guessed(data))
    assert sheet.columns == tuple(columns) and sheet.rows[0][1][columns[1]] == text.split(",")[-1].strip()


def test_a_wrong_or_unknown_encoding_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("本文,分類\nあ,い\n".encode("cp932"))
    for name, said in (("euc_jp", "cp932"), ("klingon", "no encoding")):
        with pytest.raises(InputError) as error:
            read_sheet(path, encoding=name)
        assert said in f"{error.value.problem} {error.value.remedy}"


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    book = openpyxl.Workbook()
    page = book.active
    page.title = "Tickets"
    for row in (
        [None, None, None],
        ["Message ", "Level", "When"],
        ["first", 3, datetime.datetime(2026, 1, 2)],
        [None, None, None],
        ["second\nline", 2.5, datetime.datetime(2026, 1, 2, 3, 4)],
        ["=1+1", True, None],
    ):
        page.append(row)
    other = book.create_sheet("Other")
    other.append(["Q", "A"])
    other.append(["one", "1"])
    path = tmp_path / "t.xlsx"
    book.save(path)
    return path


def test_workbooks_are_read_as_they_are_shown(workbook):
    sheet = read_sheet(workbook)
    assert sheet.columns == ("Message", "Level", "When")
    assert [dict(row) for _, row in sheet.rows][:2] == [
        {"Message": "first", "Level": "3", "When": "2026-01-02"},
        {"Message": "second\nline", "Level": "2.5", "When": "2026-01-02T03:04:00"},
    ]
    assert sheet.rows[1][0].endswith("row 5"), "places are those of the workbook"
    assert read_sheet(workbook, sheet="Other").rows[0][1] == {"Q": "one", "A": "1"}
    with pytest.raises(InputError) as error:
        read_sheet(workbook, sheet="Oter")
    assert "'Other'" in error.value.remedy


def test_what_is_no_workbook_is_refused(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="no Excel workbook"):
        read_sheet(path)
    with pytest.raises(InputError, match="no table"):
        read_sheet(tmp_path / "t.docx")


def test_cells_as_text():
    assert [written(value) for value in (None, 7, 7.0, 0.1, True, "a ", ["x", 1])] == [
        "", "7", "7", "0.1", "true", "a ", '["x", 1]'
    ]  # fmt: skip


def test_json_lines_and_arrays_are_tables_too(tmp_path):
    rows = [{"q": "a", "n": 1}, {"q": "b", "n": 2, "z": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        made = rows_from(tmp_path / name, Columns("{q}", answer="n"))
        assert made.rows[1] == {"prompt": "b", "answer": "2"}


def test_an_unmapped_table_gets_one_message_with_its_columns_and_a_command_that_works(
    tickets, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("task check tickets.csv --json", capsys)
    found = json.loads(out)["findings"]
    assert code == 2 and len(found) == 1
    for column in ("Ticket ID", "Message", "Category", "Agent"):
        assert repr(column) in found[0]["message"]
    command = found[0]["message"].partition("kanna task new")[2]
    code, out, _ = run(f"task new{command} --json", capsys)
    assert code == 0 and json.loads(out)["choices"] == ["account", "billing", "technical"]
    assert run("task check app.jsonl", capsys)[0] == 0
    with pytest.raises(InputError, match="'Ticket ID', 'Message'"):
        read_rows(tickets)


def test_a_table_that_lacks_one_key_is_no_unmapped_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,anwser\na,b\n")
    with pytest.raises(InputError, match="line 2"):
        read_rows(path)


def test_the_verb(tickets, tmp_path, capsys):
    out = tmp_path / "app.jsonl"
    command = f"task new {out} --from {tickets} --prompt 'T: {{Message}}\\nC:' --label Category"
    code, said, _ = run(command, capsys)
    assert code == 0 and "choices: account, billing, technical" in said and "left out" in said
    rows = read_rows(out)
    assert rows[2].prompt == "T: 請求書が届きません\nC:" and rows[2].answer == "billing"
    code, _, wrong = run(command, capsys)
    assert code == 2 and "--force" in wrong
    before = out.read_bytes()
    for bad in (
        f"{command} --kind choice --force",
        f"task new {out} --label x --force",
        f"task new {out} --from {tickets} --force",
        f"{command} --sheet A --force",
        f"task new {tmp_path}/a.csv --from {tickets} --prompt '{{Message}}' --label Category",
    ):
        assert run(bad, capsys)[0] == 2
        assert out.read_bytes() == before
    assert "Ticket ID, Message" in run(f"task new {out} --from {tickets} --force", capsys)[2]
