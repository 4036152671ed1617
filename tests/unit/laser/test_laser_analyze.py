"""What kept and removed components answer, against the models written with those edits."""

import json
from pathlib import Path

import laser_tiny
import pytest
import torch

from kanna.errors import InputError
from kanna.methods.laser.analyze import laser_analyze
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.run import laser_apply
from kanna.runs.evaluations import evaluate, evaluate_text
from kanna.tasks.options import EvalOptions

EDIT = "down:2:0.25"


def test_scores_are_those_of_the_written_models(planted, task, text, tmp_path):
    found = laser_analyze(planted, task, [EDIT], by="frequency", text=text).to_dict()
    models = {"base": planted, "top": tmp_path / "top", "bottom": tmp_path / "bottom"}
    for mode in ("top", "bottom"):
        laser_apply(planted, models[mode], LaserConfig(edits=(EDIT,), mode=mode))
    for name, model in models.items():
        score = evaluate(model, [task], EvalOptions(), fresh=True).scores[0]
        assert found["scores"][name]["greedy"] == pytest.approx(score.metrics["greedy"])
        assert found["scores"][name]["log_loss"] == pytest.approx(score.metrics["log_loss"], abs=1e-5)
        kinds = found["by"][name]
        assert kinds.keys() == {"rare", "frequent"}
        total = sum(one["rows"] * one["value"] for one in kinds.values())
        assert total == pytest.approx(sum(record.values["greedy"] for record in score.records))
    assert found["task"]["rows"] == 240
    for name, model in (("base", planted), ("edited", models["top"])):
        measured = evaluate_text(model, text).result.perplexity
        assert found["perplexity"][name] == pytest.approx(measured, rel=1e-5)
    assert found["difference"]["gained"] > found["difference"]["lost"]


def test_answers_are_of_rows_that_changed(planted, task, rows):
    found = laser_analyze(planted, task, [EDIT], examples=500, samples=3).to_dict()
    changes = [one["change"] for one in found["answers"]]
    assert changes == sorted(changes)  # gained before lost
    assert changes.count("gained") == found["difference"]["gained"] > 0
    assert changes.count("lost") == found["difference"]["lost"]
    for one in found["answers"]:
        assert (one["prompt"], one["expected"]) == (rows[one["row"]]["prompt"], rows[one["row"]]["answer"])
        right = {name: one[name].split()[:1] == [one["expected"]] for name in ("base", "top")}
        assert right == (
            {"base": False, "top": True} if one["change"] == "gained" else {"base": True, "top": False}
        )
    assert len(found["samples"]["prompts"]) == 3 == len(found["samples"]["edited"]["texts"])
    assert len(laser_analyze(planted, task, [EDIT], examples=2, samples=0).to_dict()["answers"]) == 2


def test_spectra(planted, task):
    found = laser_analyze(planted, task, [EDIT, "mlp:2:0.5"], examples=0, samples=0).to_dict()
    by_edit = {one["edit"]: one for one in found["spectra"]}
    assert by_edit.keys() == {EDIT, "gate:2:0.5", "up:2:0.5"}  # of two ranks the smaller one
    from safetensors.torch import load_file

    values = torch.linalg.svdvals(load_file(planted / "model.safetensors")[laser_tiny.PLANTED].double())
    chances = values / values.sum()
    one = by_edit[EDIT]
    assert one["effective_rank"] == pytest.approx(
        float(torch.exp(-(chances * chances.log()).sum())), rel=1e-6
    )
    assert one["kept_energy"] == pytest.approx(float(values[:8].square().sum() / values.square().sum()))
    assert (one["rank"], one["full_rank"]) == (8, 32)


def test_few_rows_are_enough_to_look_at(planted, rows, tmp_path):
    few = laser_tiny.write_rows(tmp_path / "few.jsonl", rows[:4])
    assert laser_analyze(planted, few, [EDIT], samples=0).to_dict()["task"]["rows"] == 4


def test_a_matrix_of_zeros(clean, task, tmp_path):
    laser_apply(clean, tmp_path / "zero", LaserConfig(edits=("down:2:0",)))
    found = laser_analyze(tmp_path / "zero", task, [EDIT, "up:2:0"], samples=0).to_dict()
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--edit"),
        (("--edit", "banana:0:0.5"), "banana"),
        (("--edit", "down:3:0.5"), "no layer 3"),
        (("--edit", "down:0:k=99"), "no rank 99"),
        (("--edit", "down:0:mp"), "depends on the spectrum"),
        (("--edit", EDIT, "--by", "colour"), "keys of its rows: frequency"),
        (("--edit", EDIT, "--text", "missing.txt"), "missing.txt"),
        (("--edit", EDIT, "--metric", "banana"), "banana"),
    ],
)
def test_requests_that_cannot_be_met(planted, task, tmp_path, kanna, words, said):
    code, out, err = kanna("laser", "analyze", planted, "--task", task, *words, "--out", tmp_path / "results")
    assert code == 2 and said in err and out == "" and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed(planted, task, text, tmp_path, kanna):
    words = ("laser", "analyze", planted, "--task", task, "--edit", EDIT, "--by", "frequency", "--text", text)
    code, out, _ = kanna(*words, "--out", tmp_path)
    assert code == 0
    for part in (
        "removed components alone",
        "effective rank",
        "Perplexity of plain text:",
        "Free text after prompts of the task",
        "edited",
        "rare",
        "gained",
    ):
        assert part in out
    written = next(Path(tmp_path).glob("*.json"))
    assert json.loads(written.read_text())["kind"] == "laser-analysis"
    assert kanna(*words, "--out", tmp_path)[0] == 2


def test_nothing_to_analyse(planted, task):
    with pytest.raises(InputError, match="nothing to analyse"):
        laser_analyze(planted, task, [])
