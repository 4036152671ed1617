"""What the search, the composition and the analysis really write goes onto a page."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "laser"))

import laser_tiny
from tiny_model import TEXT, save_model

from kanna.methods.laser.analyze import laser_analyze
from kanna.methods.laser.arena import SearchOptions
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.composing import laser_compose
from kanna.methods.laser.searching import laser_search
from kanna.recipe.report import report
from kanna.runs.results import write_result


@pytest.mark.parametrize("fast", [None, 16])
def test_a_page_of_real_results(tmp_path, monkeypatch, fast):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    base = save_model(tmp_path / "base")
    task = laser_tiny.write_rows(tmp_path / "facts.jsonl", laser_tiny.facts())
    (tmp_path / "plain.txt").write_text(TEXT)
    options = SearchOptions(
        rhos=("0.5", "0.1"), share=0.4, by="frequency", text=tmp_path / "plain.txt",
        blocks=(1, 2), budget=Budget(fast=fast, shortlist=6),
    )  # fmt: skip
    found = laser_search(base, task, tmp_path / "found", options).result
    laser_compose(base, task, tmp_path / "found", tmp_path / "composed", max_steps=3)
    analysed = laser_analyze(base, task, ["down:1:0.1"], by="frequency", samples=2).to_dict()
    write_result(tmp_path / "R", "laser-analysis", base, analysed)
    result = report([tmp_path / name for name in ("found", "composed", "R")], tmp_path / "page.html")
    assert list(result.verdicts) == [
        "LASER search of base on facts.jsonl",
        "LASER composition of base on facts.jsonl",
        "LASER analysis of base on facts.jsonl",
    ]
    assert (result.verdicts["LASER search of base on facts.jsonl"] == "no edit") == found["base_wins"]
    text = result.markdown.read_text(encoding="utf-8")
    for heading in (
        "Pareto set",
        "On test rows, by frequency",
        "Stages, on",
        "Spectra of",
        "Free text, side by side",
    ):
        assert f"### {heading}" in text
    html = result.html.read_text(encoding="utf-8")
    # One tile per candidate tried, since no layer has experts.
    assert html.count("data-row=") == len(found["trials"]) == (6 if fast else 24)
