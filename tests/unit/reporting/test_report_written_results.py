"""Results that kanna 0.1 wrote of tiny models: they open in a report, and are read as they were written."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from kanna.reporting.report import report
from kanna.reporting.sources import KINDS

RESULTS = Path(__file__).parent / "data_results"
FILES = sorted(RESULTS.glob("*-*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_they_open_in_a_report(tmp_path):
    found = report([RESULTS, RESULTS / "small"], tmp_path / "p.html")
    assert dict(found.verdicts) == {
        "damaged against base (data_results/compare-judged.json)": "fail",
        "damaged against base (data_results/compare-not-judged.json)": "not judged",
        "same against base": "pass",
        "small against base": "pass",
    }
    text = found.markdown.read_text(encoding="utf-8")
    assert "Bench of small" in text and "base on its own" in text and "Lineage of small" in text
    assert len(found.sources) == len(FILES) + 1 == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_written_again_as_they_were_read(path):
    data = read(path)
    assert KINDS[data["kind"]].model_validate(data).to_dict() == data


def test_a_lineage_keeps_a_comparison_without_rows():
    held = read(RESULTS / "small" / "kanna.json")["steps"][0]["scores"]["comparison"]
    assert KINDS["compare"].model_validate(held).summary() == held


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("compare-judged", ("tasks", 0, "decision", "interval", 1)),
        ("compare-judged", ("distribution", "kl_mean")),
        ("compare-judged", ("blame", 0, "repaired")),
        ("compare-judged", ("tasks", 1, "new")),
        ("eval-base", ("tasks", 2, "value")),
        ("eval-base", ("bytes",)),
        ("bench-against", ("models", 1, "settings", 0, "measured", "decode", "p95")),
        ("bench-against", ("models", 0, "computed_cost", "per_million_tokens")),
        ("bench-against", ("ratios", 0, "prefill", 2)),
    ],
)
def test_a_number_that_is_a_text_is_refused_by_its_name(name, place):
    data = copy.deepcopy(read(RESULTS / f"{name}.json"))
    inside = data
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = str(inside[place[-1]])
    with pytest.raises(ValidationError) as refused:
        KINDS[data["kind"]].model_validate(data)
    assert [error["loc"] for error in refused.value.errors()] == [place]


def test_reading_takes_neither_torch_nor_rich():
    code = "import sys, kanna.reporting.report; assert not {'torch', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
