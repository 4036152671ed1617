"""The Markdown, read by a parser of GitHub's tables that passes HTML through."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_samples import CJK, EVIL, everything

from kanna.recipe.report import report
from kanna.reporting.blocks import Example, Examples, Page, Section, Table
from kanna.reporting.markdown import escaped, fenced, render

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED = {"text", "softbreak", "strong_open", "strong_close"}
TEXTS = st.text(
    st.one_of(st.sampled_from("<>&|`~*_[]()!#+-=.:\\$@\n \t1"), st.characters(codec="utf-8")), max_size=60
)


def inline(tokens: list[Any]) -> list[Any]:
    return [child for token in tokens if token.type == "inline" for child in token.children]


@given(TEXTS)
@example(EVIL)
@example("- item")
@example("1. one")
@example("# heading")
@example("<!-- |")
def test_escaped_text_stands_for_itself(text):
    tokens = PARSER.parse(escaped(text))
    expected = " ".join(text.replace("\0", "�").split())
    assert "".join(child.content for child in inline(tokens)) == expected
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    assert {child.type for child in inline(tokens)} <= {"text", "text_special"}


@given(TEXTS, TEXTS)
@example(EVIL, EVIL)
def test_a_cell_stays_in_its_place(one, other):
    table = Table("title", ("left", ">right"), [[f"x{one}", f"x{other}"]])
    tokens = PARSER.parse(render(Page("page", [], [Section("part", [table])])))
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    said = ["".join(child.content for child in cell.children) for cell in cells]
    assert said == [" ".join(f"x{text}".replace("\0", "�").split()) for text in (one, other)]


@given(TEXTS)
@example("```\n````\n~~~~~")
@example("\r")
@example("a\r\nb\rc\n")
def test_fenced_text_is_kept_as_it_is(text):
    tokens = PARSER.parse(f"{fenced(text)}\n\nafter")
    assert [token.type for token in tokens][:1] == ["fence"]
    assert [token.type for token in tokens][1:] == ["paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == text.replace("\0", "�").replace("\r\n", "\n").replace("\r", "\n") + "\n"


def test_nothing_in_a_whole_report_is_html_or_a_link(tmp_path):
    report(everything(tmp_path), tmp_path / "page.html", title=EVIL)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    tokens = PARSER.parse(text)
    assert "html_block" not in {token.type for token in tokens}
    assert {child.type for child in inline(tokens)} <= ALLOWED | {"text_special"}
    linkify = [found for found in ("http://example", "https://example", "www.") if _outside(text, found)]
    assert not linkify
    fences = [token.content for token in tokens if token.type == "fence"]
    assert EVIL.replace("\0", "�") + "\n" in fences and CJK + "\n" in fences


def _outside(text: str, found: str) -> bool:
    """Whether a text stands somewhere that is no fence."""
    spans = [token.map for token in PARSER.parse(text) if token.type == "fence"]
    lines = text.split("\n")
    inside = {line for start, end in spans for line in range(start, end)}
    return any(found in line for number, line in enumerate(lines) if number not in inside)


def test_both_pages_show_the_same_numbers(tmp_path):
    from kanna.methods.laser.report import VIEWS
    from kanna.reporting.blocks import Figure
    from kanna.reporting.page import page
    from kanna.reporting.sources import read_sources

    made = page(read_sources(everything(tmp_path), VIEWS), "title", VIEWS)
    text = render(made)
    cells = [
        c for s in made.sections for b in s.blocks if isinstance(b, Table) for row in b.rows for c in row
    ]
    figures = [part for cell in cells for part in (cell if isinstance(cell, tuple) else (cell,))]
    shown = [part.text for part in figures if isinstance(part, Figure)]
    assert len(shown) > 100
    assert all(escaped(one) in text for one in shown)


@pytest.mark.parametrize("seed", range(3))
def test_examples_are_there(seed):
    rng = random.Random(seed)
    words = ["".join(rng.choice("abc|`<&\n") for _ in range(30)) for _ in range(4)]
    shown = Examples("flips", "base", "new", [Example("row 1", "lost", *words)])
    tokens = PARSER.parse(render(Page("page", [], [Section("part", [shown])])))
    assert [token.content for token in tokens if token.type == "fence"] == [words[0] + "\n"]
    said = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    for word in words[1:]:
        assert " ".join(word.split()) in said


def test_where_the_file_lies(tmp_path: Path):
    result = report(everything(tmp_path), tmp_path / "deep" / "page.html")
    assert result.markdown == tmp_path / "deep" / "page.md"
    assert result.markdown.read_text(encoding="utf-8").startswith("# Compression report\n")
