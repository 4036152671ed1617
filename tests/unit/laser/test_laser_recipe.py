"""The step laser of a recipe is the verb."""

import json
from pathlib import Path

import pytest
import yaml

import kanna as package


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def written(path: Path, model: Path, out: Path, settings: object, **more: object) -> Path:
    path.write_text(
        yaml.safe_dump({"model": str(model), "out": str(out), "steps": [{"laser": settings}], **more})
    )
    return path


def test_a_recipe_does_what_the_verb_does(base, tmp_path, kanna):
    settings = {"edits": ["mlp:3:0.25", "q:-1:k=4"], "factored": True, "keep_originals": True}
    recipe = written(tmp_path / "recipe.yaml", base, tmp_path / "a" / "out", settings)
    code, said, _ = kanna("run", recipe, "--dry-run", "--json")
    assert code == 0 and json.loads(said)["out"] is None and not (tmp_path / "a").exists()
    code, said, _ = kanna("run", recipe, "--json")
    assert code == 0 and json.loads(said)["kind"] == "laser"
    words = ("--edit", "mlp:3:0.25", "--edit", "q:-1:k=4", "--factored", "--keep-originals")
    assert kanna("laser", "apply", base, *words, "--out", tmp_path / "b" / "out")[0] == 0
    assert files(tmp_path / "a" / "out") == files(tmp_path / "b" / "out")
    config = package.LaserConfig(**settings)
    package.laser_apply(base, tmp_path / "c" / "out", config)
    assert files(tmp_path / "a" / "out") == files(tmp_path / "c" / "out")
    assert package.run(recipe, force=True).plan.config == config
    package.laser_restore(tmp_path / "a" / "out", tmp_path / "back")
    names = ("config.json", "model.safetensors")
    assert all((tmp_path / "back" / name).read_bytes() for name in names)


def test_what_a_recipe_says(base, tmp_path, kanna):
    recipe = written(tmp_path / "recipe.yaml", base, tmp_path / "out", {"edits": ["down:3:0.01"]})
    code, out, err = kanna("run", recipe)
    assert code == 0 and "model.layers.3.mlp.down_proj" in out and "rank 0, all zeros" in err


def test_a_recipe_is_judged(clean, task, tmp_path, kanna):
    limits = tmp_path / "tolerance.yaml"
    limits.write_text(yaml.safe_dump({"tasks": [{"task": str(task), "max_drop": "10pt"}]}))
    bad = {"edits": ["mlp:all:0"]}
    recipe = written(tmp_path / "bad.yaml", clean, tmp_path / "bad", bad, tolerance=str(limits))
    assert kanna("run", recipe)[0] == 3 and (tmp_path / "bad").is_dir()
    good = {"edits": ["down:2:0.25"]}  # the rank that it has
    recipe = written(tmp_path / "good.yaml", clean, tmp_path / "good", good, tolerance=str(limits))
    assert kanna("run", recipe)[0] == 0


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ({"edits": ["up"]}, {}, "cannot be read"),
        ({"edit": ["up:0:0.5"]}, {}, "edit"),
        ({"edits": "up:0:0.5"}, {}, "edits"),
        ({"edits": ["up:99:0.5"]}, {}, "no layer 99"),
        ({"edits": ["up:0:0.5"], "mode": "best"}, {}, "mode"),
        ({"edits": ["up:0:0.5"]}, {"calibration": "text.txt"}, "calibration"),
    ],
)
def test_recipes_refused(base, tmp_path, kanna, settings, more, said):
    recipe = written(tmp_path / "recipe.yaml", base, tmp_path / "out", settings, **more)
    code, out, err = kanna("run", recipe)
    assert code == 2 and said in err and out == "" and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_nothing_to_resume(base, tmp_path, kanna):
    recipe = written(tmp_path / "recipe.yaml", base, tmp_path / "out", {"edits": ["up:0:0.5"]})
    code, _, said = kanna("run", recipe, "--resume")
    assert code == 2 and "no unfinished run" in said


def test_a_search_that_chose_nothing_leaves_a_recipe_that_does_nothing(clean, task, tmp_path, kanna):
    words = ("--task", task, "--roles", "mlp", "--layers", "2", "--rho", "0.5", "--out", tmp_path / "found")
    code, said, _ = kanna("laser", "search", clean, *words)
    assert code == 0 and "no edits: nothing to judge" in said and "verdict: pass" not in said
    recorded = yaml.safe_load((tmp_path / "found" / "recipe.yaml").read_text())
    assert recorded["steps"] == [{"laser": {"edits": []}}]
    code, said, _ = kanna("run", tmp_path / "found" / "recipe.yaml", "--out", tmp_path / "again")
    assert code == 0 and "no edits: nothing to judge" in said
    again, found = files(tmp_path / "again"), files(tmp_path / "found")
    assert (
        again["model.safetensors"] == found["model.safetensors"]
        and again["recipe.yaml"] == found["recipe.yaml"]
    )


def test_no_edit_on_the_command_line_is_refused(base, tmp_path, kanna):
    code, _, said = kanna("laser", "apply", base, "--out", tmp_path / "out")
    assert code == 2 and "no edits given" in said and not (tmp_path / "out").exists()
