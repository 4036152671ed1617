"""The same verbs on masked language models."""

import json
from typing import Any

import laser_tiny
import pytest
import tiny_encoders
import torch

from kanna.checkpoint.loader import load
from kanna.methods.laser.arena import SearchOptions
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.searching import laser_search
from kanna.runs.evaluations import evaluate
from kanna.tasks.options import EvalOptions

HEADS = tiny_encoders.HEADS
MASK = {"Bert": "[MASK]", "Roberta": "<mask>"}


def rows(family: str, kind: str) -> list[dict[str, Any]]:
    found = []
    for i in range(60):
        said = HEADS[(i * i) % 8]
        row: dict[str, Any] = {
            "prompt": f"{HEADS[i % 8]} {HEADS[i // 8]} is {MASK[family]} .",
            "group": f"g{i // 2}",
        }
        if kind == "choices":
            row |= {"choices": HEADS[:4], "label": i % 4}
        else:
            row |= {"answer": said if i % 3 else f"{said} {HEADS[i % 7]}"}
        found.append(row)
    return found


@pytest.mark.parametrize("family", MASK)
@pytest.mark.parametrize("kind", ["choices", "answers"])
@pytest.mark.parametrize("fast", [None, 16])
def test_search(family, kind, fast, tmp_path):
    model = tiny_encoders.save_encoder(tmp_path / "model", family)
    task = laser_tiny.write_rows(tmp_path / "rows.jsonl", rows(family, kind))
    options = SearchOptions(
        rhos=("0.5", "0.2"), roles="all", first=True, share=0.5, rule="published", budget=Budget(fast=fast)
    )
    found = laser_search(model, task, tmp_path / "out", options)
    assert found.passed and found.result["chosen"]["edit"]
    if fast is None:
        assert found.result["evaluations"] == 6 * 2 * 2 + 1
    # What was tried in memory is what the written model scores.
    half = laser_tiny.write_rows(tmp_path / "half.jsonl", rows(family, kind)[:30])
    for where, trial in ((model, found.result["base"]), (tmp_path / "out", found.result["chosen"])):
        score = evaluate(where, [half], EvalOptions(), fresh=True).scores[0]
        assert score.value == pytest.approx(trial["accuracy"])
        assert score.metrics["log_loss"] == pytest.approx(trial["log_loss"], abs=1e-5)


def test_apply_analyze_and_compose(tmp_path, kanna):
    model = tiny_encoders.save_encoder(tmp_path / "model", "Bert")
    task = laser_tiny.write_rows(tmp_path / "rows.jsonl", rows("Bert", "answers"))
    out = tmp_path / "out"
    code, *_ = kanna("laser", "apply", model, "--edit", "mlp_in:-1:0.2", "--factored", "--out", out)
    assert code == 0 and load(out, dtype=torch.float32)[0].config.architectures == ["BertForMaskedLM"]
    code, said, _ = kanna("laser", "analyze", model, "--task", task, "--edit", "mlp_in:-1:0.2", "--json")
    found = json.loads(said)
    assert code == 0 and found["answers"] == [] and "samples" not in found
    words = ("--task", task, "--validation-share", 0.5, "--rho", "0.5,0.2")
    assert kanna("laser", "search", model, *words, "--out", tmp_path / "search")[0] == 0
    words = ("--task", task, "--from", tmp_path / "search", "--out", tmp_path / "composed")
    assert kanna("laser", "compose", model, *words)[0] == 0
    text = tmp_path / "text.txt"
    text.write_text("ka lo mi")
    code, _, said = kanna(
        "laser", "analyze", model, "--task", task, "--edit", "mlp_in:-1:0.2", "--text", text
    )
    assert code == 2 and "causal language model" in said
