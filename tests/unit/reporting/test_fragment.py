"""What a notebook shows of a result: the blocks of a page, as HTML that harms no notebook."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_laser_samples import grid, search
from report_samples import EVIL, bench, comparison, decision, evaluation, flip, task

import kanna
from kanna.measure.results import BenchResult
from kanna.methods.laser.finding import Finding
from kanna.methods.laser.results import Search
from kanna.reporting.blocks import Details, Paragraph, Section, Table, Term
from kanna.reporting.fragment import fragment
from kanna.tasks.records import Evaluation
from kanna.tasks.verdict.comparison import Comparison

DEMO = Path(kanna.__file__).parent / "demo"
ALONE = ("br", "progress")


class Checked(HTMLParser):
    """Tags that are opened are closed, in order; all of them are known to be harmless."""

    known = frozenset(
        [
            "div",
            "h4",
            "p",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "details",
            "summary",
            "pre",
            "strong",
            "abbr",
            "br",
        ]
    )

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.known and {name for name, _ in attrs} <= {"style", "title"}
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def words(html: str) -> str:
    return " ".join(Checked(html).text.split())


def test_everything_is_escaped() -> None:
    blocks = [
        Paragraph([EVIL, Term(EVIL, f'"{EVIL}"')]),
        Table(EVIL, (EVIL, f">{EVIL}"), [[EVIL, "1"]]),
        Details(EVIL, EVIL),
    ]
    html = fragment([Section(EVIL, blocks)])
    assert "<script" not in html and EVIL.split()[0] in Checked(html).text


def test_a_comparison_shows_its_verdict_first() -> None:
    decided = decision("fail", -0.1864, (-0.2390, -0.1419), -0.01)
    data = comparison("small", "fail", [task("q", 0.9928, 0.8064, decided, flips=[flip(f"Why? {EVIL}")])])
    result = Comparison.model_validate(data)
    told = words(result._repr_html_())
    assert told.startswith("FAIL : small against base") and "-23.90 pt to -14.19 pt" in told
    assert "Why?" in told and "color:#cf222e" in result._repr_html_()


def test_evaluations_benches_and_searches() -> None:
    told = words(Evaluation.model_validate(evaluation("small", "q"))._repr_html_())
    assert "small on its own" in told and "80.65 %" in told
    result = BenchResult.model_validate(bench())
    assert "Energy that no counter measured (estimated)" in words(result._repr_html_())
    assert len(repr(result)) < 200
    found = Finding(Search.model_validate(search(grid(0), (0.01, 0.05))), None, {})
    assert "LASER search of" in words(found._repr_html_()) and len(repr(found)) < 200


def test_runs_and_inspections(tmp_path: Path) -> None:
    looked = kanna.inspect(DEMO / "model")
    told = words(looked._repr_html_())
    assert "LlamaForCausalLM, 5 blocks" in told and "128 x 384" in told and len(repr(looked)) < 200
    config = kanna.LowRankConfig(keep=0.7, method="plain")
    planned = kanna.lowrank(DEMO / "model", None, config, dry_run=True)
    assert "Planned, nothing was written" in words(planned._repr_html_()) and "planned" in repr(planned)
    written = kanna.lowrank(DEMO / "model", tmp_path / "out", config, cache=tmp_path / "cache")
    told = words(written._repr_html_())
    assert re.search(r"2\.1 MB → 1\.\d MB of weights", told) and "matrices replaced" in told
    assert len(repr(written)) < 300 and "not judged; written: " in repr(written)


@pytest.mark.parametrize(
    "name", ["evaluate", "compare", "bench", "inspect", "lowrank", "run", "laser_search"]
)
def test_what_functions_give_shows_itself(name: str) -> None:
    """Whatever a function says that it returns."""
    import typing

    returned = typing.get_type_hints(getattr(kanna, name))["return"]
    assert callable(getattr(typing.get_origin(returned) or returned, "_repr_html_", None))
