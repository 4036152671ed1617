"""What a recipe may say, what it prints, and the recipe that each run leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.recipe.schema import json_schema

Base = Callable[[str], Path]
PLAIN = {"keep": 0.7, "method": "plain", "align": 1}


def written(path: Path, **recipe: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, "modle is no setting here; did you mean model?"),
        ({"modell": "x", "model": None}, "modell is no setting here; did you mean model?"),
        ({"model": 3}, "model: must be a text, found 3"),
        ({"steps": []}, "steps is empty"),
        ({"steps": {}}, "steps: must be a list"),
        (
            {"tolerance": {"tasks": [{"tsk": "x"}]}},
            "tolerance.tasks.0.tsk is no setting here; did you mean task?",
        ),
        ({"tolerance": {"confidence": "much"}}, "tolerance.confidence: must be a number, found 'much'"),
        ({"tolerance": {"tasks": [{"task": "t", "max_drop": []}]}}, "tolerance.tasks.0.max_drop: must be a"),
        ({"evaluation": {"limit": 0}}, "evaluation.limit: must be at least 1, found 0"),
        ({"steps": [{"lowrank": {"keep": "80%"}}]}, "keep: must be a number, found '80%': write 0.8"),
        ({"steps": [{"lowrank": {"keep": 80}}]}, "keep: must be at most 1, found 80"),
        ({"steps": [{"lowrank": {"rank": "a"}}]}, "rank: must be a whole number, found 'a'"),
        (
            {"steps": [{"lowrank": {**PLAIN, "calibration": "x"}}]},
            "step 1: calibration is no setting of lowrank\n  help: move it to the top",
        ),
        ({"steps": [{"lowrnk": {}}]}, "no step 'lowrnk'; did you mean lowrank?"),
        (
            {"steps": [{"lowrank": {"kep": 0.8}}]},
            "lowrank: kep is no setting here; did you mean keep?",
        ),
        ({"steps": [{"lowrank": PLAIN}, {"laser": {"edit": ["up:0:0.5"]}}]}, "did you mean edits?"),
        ({"steps": [{"lowrank": PLAIN, "laser": {}}]}, "must name one method"),
        ({"steps": [{"laser": {}}]}, "step 1: laser: no edits given"),
        ({"steps": [{"lowrank": PLAIN}, {"laser": None}]}, "step 2: laser: no edits given"),
        ({"steps": [{"laser": {"mode": "zero"}}]}, "laser: no edits given"),
        ({"steps": [{"lowrank": [1]}]}, "must hold settings"),
        ({"steps": [{"lowrank": {}}]}, "give either keep or rank"),
        ({"steps": [{"export": {}}]}, "format"),
        ({"evaluation": {"limt": 3}}, "limt"),
    ],
)
def test_recipes_refused(change: dict[str, Any], message: str, bases: Base, tmp_path: Path) -> None:
    recipe = {
        "model": str(bases("llama")),
        "out": str(tmp_path / "out"),
        "steps": [{"lowrank": PLAIN}],
        **change,
    }
    path = written(tmp_path / "recipe.yaml", **(recipe | change))
    with pytest.raises(InputError, match=r".*") as error:
        kanna.run(path)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("text", ["", "- a\n", "words\n", "3\n"])
def test_a_file_without_keys_is_no_recipe(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main(["run", str(path)]) == 2 and "the file holds no keys and values" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "nofile.yaml")]) == 2
    assert "nofile.yaml does not exist" in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_tells_every_step_as_far_as_it_is_known(
    bases: Base, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = written(
        tmp_path / "known.yaml",
        model=str(bases("llama")),
        out=str(tmp_path / "out"),
        steps=[{"lowrank": PLAIN}, {"laser": {"edits": ["mlp:1:k=2"]}}, {"export": {"format": "dense"}}],
    )
    plans = [step.plan for step in kanna.run(known, dry_run=True).steps]
    assert all(plan is not None for plan in plans) and len(plans[1].reductions) == 3
    assert main(["run", str(known), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "step 3 of 3: export" in said and "peak of" in said and "nothing was written" in said
    open_ranks = written(
        tmp_path / "open.yaml",
        model=str(bases("llama")),
        out=str(tmp_path / "out"),
        calibration=str(text),
        steps=[{"lowrank": {"keep": 0.7, "align": 1, "tokens": 512}}, {"laser": {"edits": ["mlp:1:k=2"]}}],
    )
    assert [step.plan is None for step in kanna.run(open_ranks, dry_run=True).steps] == [False, True]
    assert main(["run", str(open_ranks), "--dry-run"]) == 0
    assert "planned when the steps before it have run" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known.yaml", "open.yaml"]


def test_what_a_later_step_refuses_is_said_before_anything_is_written(bases: Base, tmp_path: Path) -> None:
    recipe = {
        "model": str(bases("llama")),
        "steps": [{"lowrank": PLAIN}, {"laser": {"edits": ["mlp:9:k=2"]}}],
    }
    with pytest.raises(InputError, match="no layer 9"):
        kanna.run(recipe, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_each_run_leaves_the_recipe_that_reproduces_it(bases: Base, text: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    rows = [{"prompt": "abcd", "choices": ["e", "f"], "label": i % 2} for i in range(30)]
    task.write_text("\n".join(map(json.dumps, rows)))
    criteria = kanna.criteria_of([str(task)], "50pt")
    config = kanna.LowRankConfig(keep=0.7, align=1, context=24, tokens=512)
    options = kanna.EvalOptions(limit=20)
    first = tmp_path / "a" / "out"
    kanna.lowrank(
        bases("llama"), first, config, calibration=text, criteria=criteria, options=options,
        cache=tmp_path / "cache",
    )  # fmt: skip
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    assert recipe["model"] == str(bases("llama")) and recipe["calibration"] == str(text)
    assert recipe["tolerance"]["tasks"] == [{"task": str(task), "max_drop": "50pt"}]
    assert recipe["evaluation"] == {"limit": 20} and "out" not in recipe
    second = tmp_path / "b" / "out"
    kanna.run(first / "recipe.yaml", out=second, cache=tmp_path / "cache")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_the_verb_writes_the_same_recipe(bases: Base, tmp_path: Path) -> None:
    words = ["lowrank", str(bases("llama")), "--keep", "0.7", "--method", "plain", "--align", "1", "-q"]
    assert main([*words, "--out", str(tmp_path / "a" / "out")]) == 0
    assert main(["run", str(tmp_path / "a/out/recipe.yaml"), "--out", str(tmp_path / "b" / "out"), "-q"]) == 0
    for name in ("model.safetensors", "kanna.json", "recipe.yaml", "README.md"):
        assert (tmp_path / "a/out" / name).read_bytes() == (tmp_path / "b/out" / name).read_bytes(), name


def test_the_schema_knows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    choices = schema["properties"]["steps"]["items"]["oneOf"]
    lowrank = next(choice["properties"]["lowrank"] for choice in choices if "lowrank" in choice["properties"])
    assert set(kanna.LowRankConfig.model_fields) <= set(lowrank["properties"])
    assert lowrank["additionalProperties"] is False and schema["additionalProperties"] is False
