"""What a terminal of any width shows: whole numbers, names by their ends, and what was found in colour."""

import io
import re
from collections.abc import Iterator

import pytest
from report_laser_samples import grid, search
from report_samples import bench, comparison, decision, flip, task
from rich.cells import cell_len
from rich.console import Console

from kanna.methods.laser.report import VIEWS
from kanna.reporting.blocks import At, Block, Section, Table
from kanna.reporting.comparison import comparison as comparison_section
from kanna.reporting.console import Paper, Told, draw, table
from kanna.reporting.costs import bench as bench_section
from kanna.reporting.verdicts import verdict
from kanna.reporting.views import Result
from kanna.reporting.wrapped import lines, words

WIDTHS = (60, 80, 100, 130)
LONG = "runs/2026-11/qwen2.5-1.5b-instruct-keep-0.55-int4"


def drawn(section: Section, width: int) -> list[str]:
    text = io.StringIO()
    draw(Paper(file=text, width=width), section)
    return text.getvalue().splitlines()


def compared() -> Section:
    decided = decision("fail", -0.1864, (-0.2390, -0.1419), -0.01)
    flips = [flip("Where is it? " * 20), flip("\u3053\u308c\u306f\u4f55\u3067\u3059\u304b" * 9)]
    tasks = [task("support-tickets-japanese.jsonl", 0.9928, 0.8064, decided, flips=flips)]
    at = At(LONG, comparison(LONG, "fail", tasks))
    section = comparison_section(at, f"{LONG} against base")
    return Section(section.title, [*section.blocks, verdict(at, section.title)])


def searched() -> Section:
    view = next(view for view in VIEWS if view.kind == "laser-search")
    _, sections = view.draw([Result(At("model", search(grid(0), (0.01, 0.05))))])
    return next(iter(sections))


SECTIONS = {"compare": compared, "bench": lambda: bench_section(At(LONG, bench(LONG))), "laser": searched}


def numbers(blocks: list[Block]) -> Iterator[str]:
    """Numbers in tables, with their units."""
    for block in blocks:
        for row in block.rows if isinstance(block, Table) else ():
            for cell in row:
                parts = cell if isinstance(cell, tuple) else (cell,)
                yield from (part.text for part in parts if not isinstance(part, str))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SECTIONS)
def test_results_fit_and_their_numbers_stay_whole(name: str, width: int) -> None:
    section = SECTIONS[name]()
    shown = drawn(section, width)
    assert max(map(cell_len, shown)) <= width
    found = list(numbers(list(section.blocks)))
    assert len(found) > 10
    for number in (word for text in found for word in words(text)):
        assert any(number in line for line in shown), number


@pytest.mark.parametrize(("width", "blocks"), [(60, True), (80, True), (100, True), (160, False)])
def test_scores_that_do_not_fit_are_one_block_a_task(width: int, blocks: bool) -> None:
    shown = drawn(compared(), width)
    labelled = [line for line in shown if re.fullmatch(r"  verdict +fail", line)]
    assert bool(labelled) is blocks
    assert any("-23.90 pt to -14.19 pt" in line for line in shown)


def test_names_lose_their_beginning() -> None:
    rows = [["model.layers.17.self_attn.q_proj", "1,234", "5.0 MB"]]
    text = io.StringIO()
    Paper(file=text, width=34).print(table(("matrix", ">count", ">bytes"), rows))
    (line,) = (line for line in text.getvalue().splitlines() if "1,234" in line)
    assert line == " ….self_attn.q_proj  1,234  5.0 MB"


def test_many_small_rows_are_told_in_few_lines() -> None:
    rows = [[f"matrix-{i}", *(str(1000 * i + j) for j in range(6))] for i in range(8)]
    headings = ("matrix", *(f">heading-{j}" for j in range(6)))
    text = io.StringIO()
    Paper(file=text, width=60).print(table(headings, rows))
    assert text.getvalue().splitlines()[:4] == [
        "matrix-0  heading-0 0; heading-1 1; heading-2 2; heading-3 3",
        "  heading-4 4; heading-5 5",
        "matrix-1  heading-0 1000; heading-1 1001; heading-2 1002",
        "  heading-3 1003; heading-4 1004; heading-5 1005",
    ]


@pytest.mark.parametrize(
    ("text", "width", "broken"),
    [
        ("it takes 4.2 MB here", 14, ["it takes", "4.2 MB here"]),
        ("changed by -0.99 pt, surely", 16, ["changed by", "-0.99 pt, surely"]),
        ("a shape of 128 x 384 it is", 13, ["a shape of", "128 x 384 it", "is"]),
        ("  fail: a task it is", 10, ["  fail: a", "task it is"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("\u3053\u308c\u306f\u4f55", 4, ["\u3053\u308c", "\u306f\u4f55"]),
        ("one\n two", 10, ["one", " two"]),
        ("", 10, [""]),
    ],
)
def test_lines_end_where_people_would_end_them(text: str, width: int, broken: list[str]) -> None:
    assert lines(text, width) == broken


@pytest.mark.parametrize(("status", "colour"), [("pass", "32"), ("FAIL", "31"), ("undecided", "33")])
def test_what_was_found_is_coloured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, status: str, colour: str
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(file: io.StringIO) -> str:
        console = Paper(file=file, width=80)
        console.print(f"verdict: {status}: small against base")
        console.print(table(("task", "verdict"), [["q", status.lower()]]))
        return file.getvalue()

    told = shown(Terminal())
    assert told.count(f"\x1b[{colour}m") == 2 and f"verdict: \x1b[{colour}m{status}\x1b[0m: small" in told
    assert "\x1b" not in shown(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(Terminal())


def test_other_words_are_not_coloured() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system="standard", width=80)
    console.print(Told("the verdict: fail"))
    console.print(table(("task",), [["failure"]]))
    assert "\x1b" not in text.getvalue()
