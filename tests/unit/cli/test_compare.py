"""kanna compare, and the verdict at the end of verbs that write a model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import WORDS

import kanna as package
from kanna.checkpoint.loader import load
from kanna.runs import evaluations
from kanna.tasks.data.rows import read_rows

ROWS = 60


@pytest.fixture
def task(tmp_path: Path) -> Path:
    lines = [
        {
            "prompt": " ".join(WORDS[(7 * i + j) % 90] for j in range(5)),
            "choices": [f" {WORDS[(11 * i + k) % 90]}" for k in range(3)],
            "label": i % 3,
        }
        for i in range(ROWS)
    ]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def damaged(base: Path, tmp_path: Path) -> Path:
    """A copy of the base of which one matrix is noise."""
    other = Path(shutil.copytree(base, tmp_path / "damaged"))
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1))
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


def test_bit_identical_weights_pass_outright(kanna, base, task, tmp_path):
    same = shutil.copytree(base, tmp_path / "same")
    ran = kanna("compare", base, same, "--task", task, "--max-drop", "0pt", "--json", "-q")
    assert ran.code == 0
    assert ran.json["status"] == "pass" and "bit-identical" in ran.json["explanation"]


def test_a_damaged_matrix_fails_and_is_blamed(kanna, base, damaged, task):
    asked = ("--task", task, "--max-drop", "1pt", "--blame", "--examples", 3)
    ran = kanna("compare", base, damaged, *asked, "--json", "-q")
    found = ran.json
    one = found["tasks"][0]
    assert ran.code == (0 if found["status"] == "pass" else 3)
    assert len(one["flips"]) <= 3 and one["lost"] + one["gained"] > 0
    lost = [flip["change"] for flip in one["flips"] if flip["direction"] == "lost"]
    assert lost == sorted(lost, reverse=True)
    assert found["blame"][0]["matrix"] == "model.layers.1.mlp.down_proj"
    assert found["blame"][0]["repaired"] == one["lost"] and found["blame"][0]["undone"] == one["gained"]
    assert [flip["direction"] for flip in one["flips"]] == sorted(
        (flip["direction"] for flip in one["flips"]), key=["lost", "gained"].index
    )


def test_flips_are_those_of_two_evaluations(kanna, base, damaged, task):
    words = ("--task", task, "--json", "-q")
    rights = [
        [record["right"] for record in kanna("eval", model, *words).json["tasks"][0]["records"]]
        for model in (base, damaged)
    ]
    one = kanna("compare", base, damaged, "--task", task, "--json", "-q").json["tasks"][0]
    assert one["lost"] == sum(a and not b for a, b in zip(*rights, strict=True))
    assert one["gained"] == sum(b and not a for a, b in zip(*rights, strict=True))


def test_distributions_against_float64(kanna, base, damaged, task):
    found = kanna("compare", base, damaged, "--task", task, "--json", "-q").json["distribution"]
    kl, agree, count = 0.0, 0, 0
    (one, tokenizer), (other, _) = (load(model, dtype=torch.float64) for model in (base, damaged))
    for row in read_rows(task):
        ids = torch.tensor([tokenizer(row.text)["input_ids"]])
        with torch.no_grad():
            p, q = (model(ids).logits[0].log_softmax(-1) for model in (one, other))
        kl += float((p.exp() * (p - q)).sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += ids.numel()
    assert found["tokens"] == count
    assert found["kl_mean"] == pytest.approx(kl / count, rel=1e-4)
    assert found["top1_agreement"] == pytest.approx(agree / count, abs=1.01 / count)


def test_without_a_tolerance_nothing_is_judged(kanna, base, damaged, task):
    ran = kanna("compare", base, damaged, "--task", task, "--no-distribution", "--json", "-q")
    assert ran.code == 0 and ran.json["status"] == "not judged"


def test_a_tolerance_file_with_a_guard(kanna, base, damaged, task, text, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        f"tasks:\n  - {{task: {task}, max_drop: 50pt}}\nguards:\n  - {{task: {text}, max_drop: 1%}}\n"
    )
    ran = kanna("compare", base, damaged, "--tolerance", rules, "--no-distribution", "--json", "-q")
    guard = next(one for one in ran.json["tasks"] if one["guard"])
    assert guard["kind"] == "text" and guard["decision"]["status"] in ("fail", "undecided")
    assert ran.code == 3


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("tasks: [{task: x.jsonl, max_drop: 1%}", "YAML"),
        ("tasks: [{task: x.jsonl, max_drop: 1%, weight: 2}]", "weight"),
        ("tasks: []", ""),
        ("tasks: [{task: missing.jsonl, max_drop: 1%}]", "missing.jsonl"),
        ("tasks: [{task: x.jsonl, max_drop: lots}]", "lots"),
    ],
)
def test_bad_tolerance_files(kanna, base, tmp_path, yaml, said):
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml)
    ran = kanna("compare", base, base, "--tolerance", rules, "-q")
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err


def test_requests_that_say_nothing(kanna, base, task):
    assert kanna("compare", base, base, "-q").code == 2
    assert "--task" in kanna("compare", base, base, "--max-drop", "1%", "-q").err
    twice = kanna("compare", base, base, "--task", task, "--task", task, "-q")
    assert twice.code == 2 and "twice" in twice.err


def test_scores_are_kept_until_something_changes(kanna, base, damaged, task):
    def cached(*more: object, model: Path = base) -> bool:
        return "cached" in kanna("eval", model, "--task", task, "--json", "-q", *more).json["run"]

    assert not cached()
    assert cached()
    assert not cached("--fresh")
    assert not cached("--limit", 20)
    assert not cached(model=damaged)
    task.write_text("\n".join(task.read_text().splitlines()[:-1]))
    assert not cached()


def test_scores_of_an_older_way_of_scoring_are_not_served(kanna, base, task, monkeypatch):
    words = ("eval", base, "--task", task, "--json", "-q")
    kanna(*words)
    assert "cached" in kanna(*words).json["run"]
    monkeypatch.setattr(evaluations, "SCORING", evaluations.SCORING + 1)
    assert "cached" not in kanna(*words).json["run"]


def test_prompts_are_computed_once_or_by_themselves(kanna, base, task):
    shared, apart = (
        kanna("eval", base, "--task", task, "--json", "-q", *more).json for more in ((), ("--no-share",))
    )
    assert "cached" not in apart["run"]
    sums = [[row["values"]["log_loss"] for row in found["tasks"][0]["records"]] for found in (shared, apart)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-4)


def test_an_export_is_judged_against_what_it_came_from(kanna, small, task, tmp_path):
    out = tmp_path / "dense"
    asked = ("--format", "dense", "--task", task, "--max-drop", "20pt", "--accept-empty", "--out", out)
    ran = kanna("export", small, *asked, "--json", "-q")
    recorded = json.loads((out / "kanna.json").read_text())["steps"][-1]["scores"]["comparison"]
    assert ran.code == 0 and recorded["status"] == ran.json["comparison"]["status"] == "pass"
    bad = kanna("export", small, "--format", "dense", "--max-drop", "1pt", "--out", tmp_path / "no", "-q")
    assert bad.code == 2 and not (tmp_path / "no").exists()


def test_lowrank_ends_with_the_verdict(kanna, base, task, tmp_path):
    out = tmp_path / "out"
    how = ("--keep", "0.3", "--method", "plain", "--align", 1, "--task", task, "--max-drop", "0pt")
    ran = kanna("lowrank", base, *how, "--out", out, "--json", "-q")
    recorded = json.loads((out / "kanna.json").read_text())["steps"][-1]["scores"]["comparison"]
    assert recorded["status"] == ran.json["comparison"]["status"]
    assert ran.code == (0 if recorded["status"] == "pass" else 3)


def test_every_public_name_is_there():
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


def test_importing_kanna_and_asking_for_help_leave_torch_alone():
    code = "import sys, kanna, kanna.cli.main; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stages_say_which_model(base, damaged, task):
    said = []
    criteria = package.criteria_of([task], "1pt")
    options = package.EvalOptions()
    package.compare(base, damaged, criteria, options, progress=lambda stage, *_: said.append(stage))
    stages = list(dict.fromkeys(said))
    assert stages[:2] == ["base: log-likelihood", "new: log-likelihood"]


def test_a_comparison_of_kept_scores_loads_nothing(kanna, tmp_path, monkeypatch):
    """What the new model writes where it is wrong now is kept, too."""
    demo = Path(package.__file__).parent / "demo"
    damaged = Path(shutil.copytree(demo / "model", tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"].zero_()
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    asked = ("--task", demo / "data" / "questions.jsonl", "--limit", 120, "--no-distribution", "--json", "-q")
    words = ("compare", demo / "model", damaged, *asked, "--examples")
    told = kanna(*words, 1).json["tasks"][0]
    assert told["lost"] > 1 and told["flips"][0]["new"].strip()

    def loaded(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(package.runs.opened, "load_weights", loaded)
    assert kanna(*words, 1).json["tasks"][0]["flips"] == told["flips"]
    more = kanna(*words, 60)  # rows that were not shown before are answered
    assert more.code == 1 and "a model is loaded" in more.err
    assert "a model is loaded" in kanna(*words, 1, "--fresh").err
