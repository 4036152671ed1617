"""Blocks on a console."""

import io

import pytest
from report_samples import EVIL, bench, comparison, decision, evaluation, flip, task
from rich.console import Console

from kanna.reporting.blocks import At, Chart, Details, Figure, Paragraph, Section, Table
from kanna.reporting.comparison import comparison as comparison_section
from kanna.reporting.comparison import evaluation as evaluation_section
from kanna.reporting.console import draw, last_sentence
from kanna.reporting.costs import bench as bench_section
from kanna.reporting.verdicts import verdict


def drawn(section: Section, width: int = 200) -> str:
    text = io.StringIO()
    draw(Console(file=text, width=width), section)
    return text.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_numbers_end_below_each_other_and_empty_columns_are_left_out():
    rows = [["a", Figure("9", 9, ""), ""], ["b", (Figure("10", 10, ""), " %"), ""]]
    lines = drawn(Section("", [Table("T", ("name", ">count", "nothing"), rows, "measured")])).splitlines()
    assert lines[0] == "T (measured)" and "nothing" not in "".join(lines)
    ends = [line.rstrip() for line in lines if line.strip() and line[:2] in (" n", " a", " b")]
    assert [line.split() for line in ends] == [["name", "count"], ["a", "9"], ["b", "10", "%"]]
    assert len({len(line) for line in ends}) == 1


def test_a_table_much_too_wide_becomes_a_block():
    table = Table("T", [f">heading {i}" for i in range(12)], [[f"{i} pt" for i in range(12)]])
    shown = drawn(Section("", [table]), 60).splitlines()
    assert shown[:3] == ["T", "heading 0 0 pt", "  heading 1   1 pt"] and shown[-1] == "  heading 11  11 pt"


def test_a_drawing_is_told_by_its_marks_or_its_table():
    table = Table("All marks", ("x", ">y"), [["a", "1"]])
    charts = [Chart("C", "<svg/>", "how to read", ["mark 1"]), Chart("D", "<svg/>", "", [], table)]
    told = words(drawn(Section("S", [*charts, Details("folded", "long")])))
    assert told.startswith("S C mark 1 how to read All marks") and "svg" not in told and "long" not in told


def test_texts_stand_for_themselves():
    """No markup, and nothing that steers a terminal."""
    told = drawn(Section("[bold]S[/bold]", [Paragraph(["[red]x[/red] \x1b[31m \x9b ", EVIL])]))
    assert "[bold]S[/bold]" in told and "[red]x[/red] �[31m � <script>" in told and "\x1b" not in told


def test_a_comparison_and_its_verdict():
    decided = decision("fail", -0.1864, (-0.2390, -0.1419), -0.01)
    data = comparison("small", "fail", [task("q", 0.9928, 0.8064, decided, flips=[flip("Why? " * 20)])])
    at = At("small", data)
    section = comparison_section(at, "small against base")
    told = words(drawn(Section(section.title, [*section.blocks, verdict(at, section.title)])))
    for said in (
        "q 1,234 acc 99.28 % 80.64 % -18.64 pt -23.90 pt to -14.19 pt",
        "-14.19 pt -1.00 pt (1pt) fail 3, 1 56.05 % 3.12 %",
        "lost row 8 ...",
        "and 3 more that flipped",
        "verdict: FAIL: small against base: 18.4 % smaller (2.1 MB → 1.7 MB of weights)",
        "of weights) Why: because it is fail.",
    ):
        assert said in told


def test_rows_of_text_are_neither_lost_nor_gained():
    asked = [task("t", 20.0, 21.0, kind="text", metric="perplexity"), task("q", 0.5, 0.5)]
    told = drawn(comparison_section(At("small", comparison("small", "not judged", asked)), ""))
    rows = {line.split()[0]: words(line) for line in told.splitlines() if "not judged" in line}
    assert rows["t"].startswith("t 1,234 windows perplexity 20 21 +1 not judged 56.05 %")
    assert rows["q"] == "q 1,234 acc 50.00 % 50.00 % +0.00 pt not judged 3, 1 56.05 % 3.12 %"


def blamed(*repaired: int) -> list[dict[str, object]]:
    return [{"matrix": f"m{i}", "repaired": count, "undone": 0} for i, count in enumerate(repaired)]


def told_of(**more: object) -> str:
    data = comparison("small", "not judged", [task("q", 0.9, 0.8, lost=2, gained=1)], **more)
    return words(drawn(comparison_section(At("small", data), "")))


def test_lists_say_how_much_they_leave_out():
    told = told_of(blame=blamed(*range(14, 0, -1)))
    assert "m9 5 0" in told and "m10" not in told and "and 4 more matrices" in told
    assert "more matrices" not in told_of(blame=blamed(*range(10, 0, -1)))
    flips = [flip("why", "lost"), flip("who", "lost"), flip("how", "gained")]
    for shown in (1, 2, 3):
        asked = [task("q", 0.9, 0.8, lost=2, gained=1, flips=flips[:shown])]
        told = words(drawn(comparison_section(At("s", comparison("small", "not judged", asked)), "")))
        assert (f"and {3 - shown} more that flipped" in told) is (shown < 3) and "and 0 more" not in told


def test_blame_that_repairs_nothing_says_so():
    told = told_of(blame=blamed(0, 0))
    assert "2 changed matrices, no single one repairs anything" in told and "m0" not in told
    assert "no matrix was put back" in told_of(blame=[])
    assert "put back" not in told_of()
    assert "m0 0 0" in words(
        drawn(
            comparison_section(
                At(
                    "s",
                    comparison("s", "not judged", [task("q", 0.9, 0.9, lost=0, gained=1)], blame=blamed(0)),
                ),
                "",
            )
        )
    )


def test_an_evaluation_and_a_bench():
    told = words(drawn(evaluation_section(At("small", evaluation("small", "q")))))
    assert told.startswith("small on its own Scores (measured)")
    assert "q 279 acc 80.65 % 8.60 %" in told and "q log_loss 0.6884" in told and "Note: q: note on q" in told
    told = words(drawn(bench_section(At("small", bench()))))
    assert "Energy that no counter measured (estimated)" in told and "0.518 EUR" in told
    assert (
        "batch 1, context 32 1.05x 0.51x to 2.09x: no clear difference 1.49x 1.22x to 1.75x: faster" in told
    )


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Ada has 3. Ivo gives 2 to her.\nQuestion: How many has she? Answer:",
         "... Question: How many has she? Answer:"),
        ("How many? Answer:", "How many? Answer:"),
        ("no sentence at all", "no sentence at all"),
        ("First one. Then the capital of France is", "First one. Then the capital of France is"),
        ("\u96ea\u3067\u3059\u3002\u5929\u6c17\u306f\u4f55\u3067\u3059\u304b\uff1f\u7b54\u3048:",
         "... \u5929\u6c17\u306f\u4f55\u3067\u3059\u304b\uff1f\u7b54\u3048:"),
        ("It costs 3.50 today. Why?", "... Why?"),
    ],
)  # fmt: skip
def test_a_prompt_is_told_by_its_last_whole_sentence(prompt, shown):
    assert last_sentence(prompt) == shown


def test_a_sentence_without_end_is_told_by_its_end():
    assert last_sentence("word " * 200) == "..." + ("word " * 200).strip()[-300:]
