"""How the flags of kanna eval change what is right, what it costs and what better is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def rows(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_legacy_flag(kanna: Callable[..., Any], shared_base: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"w1 w{i} w2", "answer": f"w{i}"} for i in range(10, 20)]
    task = rows(tmp_path / "task.jsonl", lines)
    words = ["eval", shared_base, "--task", task, "--metric", "contains", "--json"]
    shares = [kanna(*words, *more).json["tasks"][0] for more in ([], ["--legacy-contains"])]
    assert shares[0]["value"] < shares[1]["value"] == 1.0
    assert shares[0]["floors"]["answer_in_prompt"] == 1.0
    assert any("legacy rule" in note for note in shares[1]["notes"])


@pytest.mark.parametrize(("minus", "code", "status"), [("", 0, "pass"), ("-", 3, "fail")])
def test_a_metric_of_the_user_says_what_better_is(
    kanna: Callable[..., Any],
    shared_base: Path,
    shared_small: Path,
    tmp_path: Path,
    minus: str,
    code: int,
    status: str,
) -> None:
    """The compressed model gets more of it in every row: that is better, or worse."""
    metric = tmp_path / "metric.py"
    metric.write_text(
        "calls = __import__('pathlib').Path(__file__).with_name('calls')\n"
        "def length(examples):\n"
        "    calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')\n"
        "    return [len(calls.read_text()) + one['row'] / 100 for one in examples]\n"
    )
    task = rows(
        tmp_path / "task.jsonl", [{"prompt": f"w{i}", "choices": ["w1", "w2"], "label": 0} for i in range(20)]
    )
    words = ["--task", task, "--metric", f"{minus}{metric}:length", "--max-drop", "1%", "--json"]
    ran = kanna("compare", shared_base, shared_small, *words)
    (found,) = ran.json["tasks"]
    assert ran.code == code and ran.json["status"] == status
    assert found["higher_is_better"] == (minus == "") and found["metric"] == "metric.py:length"
    assert found["new"] > found["base"]


def test_costs_stand_beside_accuracy(kanna: Callable[..., Any], shared_base: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"w{i}", "choices": ["w1", "w2"], "label": i % 2} for i in range(10)]
    costs = tmp_path / "costs.yaml"
    costs.write_text("{w1: {w2: 7}, w2: {w1: 3}}")
    words = ["eval", shared_base, "--task", rows(tmp_path / "task.jsonl", lines), "--costs", costs, "--json"]
    (found,) = kanna(*words).json["tasks"]
    pairs = [(record["label"], record["chosen"]) for record in found["records"]]
    expected = sum({(0, 1): 7, (1, 0): 3}.get(pair, 0) for pair in pairs) / 10
    assert found["metrics"]["expected_cost"] == pytest.approx(expected) and expected > 0
