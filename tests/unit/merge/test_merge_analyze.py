"""Analyses of recipes: contributions against models on disk with swapped tensors; disagreement of weights."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import in_child
from merge_models import weights
from safetensors.torch import save_file
from torch import Tensor
from tuned_tasks import rows_of, split_words, tasks_of, write_rows

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.tuning.samples import Notebook, Sample
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_rows
from kanna.tasks.options import EvalOptions

Models = dict[str, Path]
_BLOCKS = {"embeddings": "embed", "0": "layers.0.", "1": "layers.1.", "norm and head": "model.norm"}


@pytest.fixture(scope="module")
def spoken(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return split_words(models, tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def tasks(spoken: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tasks_of(spoken, tmp_path_factory.mktemp("tasks"))


def ties(models: Models) -> dict[str, Any]:
    listed = [{"model": str(models[name]), "parameters": {"weight": 1, "density": 0.5}} for name in "ab"]
    given = {"merge_method": "ties", "base_model": str(models["base"]), "models": listed}
    return {**given, "parameters": {"normalize": False}, "out_dtype": "float32"}


def test_contributions_are_those_of_models_with_swapped_blocks(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    kanna.merge(ties(spoken), tmp_path / "merged")
    lines = tasks["b"].read_text().splitlines()
    places, _ = split_rows(read_rows(tasks["b"]), 0.4, 0)
    rows = write_rows(tmp_path / "rows.jsonl", [json.loads(lines[place]) for place in places])

    def score(tensors: dict[str, Tensor]) -> float:
        place = tmp_path / "swapped"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(spoken["base"], place)
        save_file({name: value.float() for name, value in tensors.items()}, place / "model.safetensors")
        (found,) = kanna.evaluate(place, [rows], EvalOptions(metric="log_loss"), fresh=True).scores
        return -found.value

    base, own, merged = (weights(place) for place in (spoken["base"], spoken["b"], tmp_path / "merged"))
    done = kanna.merge_analyze(
        ties(spoken), tasks, calibration_share=0.4, evaluation=EvalOptions(metric="log_loss")
    )
    assert done.analysis is not None
    assert [block.block for block in done.analysis.blocks] == list(_BLOCKS)
    assert [task.expert for task in done.analysis.tasks] == ["a", "b"]
    gain = score(own) - score(base)
    assert done.analysis.tasks[1].gain == pytest.approx(gain, abs=1e-5)
    for block in done.analysis.blocks:
        inside = {name for name in base if _BLOCKS[block.block] in name}
        found = []
        for model in (own, merged):
            without = {name: base[name] if name in inside else value for name, value in model.items()}
            alone = {name: model[name] if name in inside else value for name, value in base.items()}
            found.append((score(model) - score(without), score(alone) - score(base)))
        for told, (alpha, beta) in zip((block.own[1], block.merged[1]), found, strict=True):
            assert (told.alpha, told.beta) == pytest.approx((alpha, beta), abs=1e-5)
        gamma = (sum(found[0]) - sum(found[1])) / gain
        assert block.gamma[1] == pytest.approx(gamma, abs=1e-4)
    assert max(abs(block.gamma[1]) for block in done.analysis.blocks) > 0.05


def test_without_tasks_it_is_of_weights(
    spoken: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(ties(spoken)))
    assert main(["merge", "analyze", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    plan = kanna.merge_plan(ties(spoken), risk=True)
    assert told["disagreement"] == plan.disagreement and told["blocks"] == [] == told["tasks"]
    assert main(["merge", "analyze", str(file)]) == 0
    assert "Differences from the base by layer" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_verb_with_tasks(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(ties(spoken)))
    words = ["merge", "analyze", str(file), "--group", "2", "--calibration-share", "0.4"]
    for name, rows in tasks.items():
        words += ["--task", f"{name}={rows}"]
    assert main([*words, "--out", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr()
    assert "evaluations of 48 rows in all" in shown.err
    assert "Conflicts by block, with standard errors" in shown.out and "0-1" in shown.out
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "results"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Analysis of ties" in text and "Contributions in the experts, by addition" in text
    assert "Measured: " in text and "Machine: " in text


def test_what_cannot_be_analysed(spoken: Models, tasks: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="c has no expert"):
        kanna.merge_analyze(ties(spoken), {"c": tasks["a"]})
    with pytest.raises(InputError, match="no base that gains"):
        listed = [{"model": str(spoken[name]), "parameters": {"weight": 1}} for name in "ab"]
        kanna.merge_analyze({"merge_method": "linear", "models": listed}, {"a": tasks["a"]})
    sources = [{"model": str(spoken[name]), "layer_range": [0, 1]} for name in ("base", "a", "b")]
    shorter = {**ties(spoken), "slices": [{"sources": sources}]}
    del shorter["models"]
    shorter["parameters"] = {"weight": 1}
    with pytest.raises(InputError, match="cannot change places"):
        kanna.merge_analyze(shorter, tasks, calibration_share=0.4)


def test_a_killed_analysis_goes_on(spoken: Models, tasks: dict[str, Path], tmp_path: Path) -> None:
    """With what was evaluated, to the same figures; the folder of unfinished work goes."""
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(ties(spoken)))
    whole, out, count = tmp_path / "whole", tmp_path / "killed", tmp_path / "count"

    def analysed(out: Path, resume: bool = False) -> None:
        kanna.merge_analyze(file, tasks, calibration_share=0.4, out=out, resume=resume)

    def killed() -> None:
        original = Notebook.add

        def add(self: Notebook, candidate: str, task: str, found: Sample) -> None:
            original(self, candidate, task, found)
            if len(self.known) == 20:
                os.kill(os.getpid(), signal.SIGKILL)

        Notebook.add = add  # type: ignore[method-assign]
        analysed(out)

    def resumed() -> None:
        original, added = Notebook.add, 0

        def add(self: Notebook, candidate: str, task: str, found: Sample) -> None:
            nonlocal added
            original(self, candidate, task, found)
            added += 1

        Notebook.add = add  # type: ignore[method-assign]
        analysed(out, resume=True)
        count.write_text(str(added))

    assert in_child(lambda: analysed(whole)) == 0
    assert in_child(killed) == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == ["merge-analysis-recipe.yml.kanna-work"]
    assert in_child(resumed) == 0
    name = "merge-analysis-recipe.yml"
    result, again = ((place / f"{name}.json").read_bytes() for place in (whole, out))
    assert json.loads(result)["blocks"] and result == again
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.json", f"{name}.run.json"]
    assert {"finished", "machine", "seconds"} <= set(json.loads((out / f"{name}.run.json").read_text()))
    # Of each task base and expert, these and the merge as blocks, and four for each block.
    assert int(count.read_text()) == 2 * (2 + 3 + 4 * 4) - 20
    with pytest.raises(InputError, match="exists already"):
        analysed(out)
    with pytest.raises(InputError, match="nothing is kept that could be resumed"):
        kanna.merge_analyze(file, tasks, calibration_share=0.4, resume=True)


def test_what_was_scored_with_another_base_is_not_resumed(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the recipe names none, and the other base lies where the first one lay."""
    base = Path(shutil.copytree(spoken["base"], tmp_path / "base"))
    listed = [{"model": str(spoken[name]), "parameters": {"weight": 0.5}} for name in "ab"]
    linear = {"merge_method": "linear", "models": listed, "out_dtype": "float32"}
    original = Notebook.add

    def stopped(self: Notebook, candidate: str, task: str, found: Sample) -> None:
        original(self, candidate, task, found)
        raise KeyboardInterrupt

    def begun(verb: Any, out: Path, **more: Any) -> None:
        verb(linear, tasks=tasks, base=str(base), calibration_share=0.4, out=out, **more)

    verbs = (kanna.merge_analyze, partial(kanna.merge_sweep, vary=["weight=0.4,0.6"]))
    for number, verb in enumerate(verbs):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Notebook, "add", stopped)
            begun(verb, out)
        values = {name: value.float() for name, value in weights(base).items()}
        save_file({name: value * 1.01 for name, value in values.items()}, base / "model.safetensors")
        with pytest.raises(InputError, match="was begun with other settings, model"):
            begun(verb, out, resume=True)


def test_what_an_analysis_would_take(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(ties(spoken)))
    words = ["merge", "analyze", str(file), "--calibration-share", "0.4", "--out", str(tmp_path / "results")]
    for name, rows in tasks.items():
        words += ["--task", f"{name}={rows}"]
    assert main([*words, "--dry-run"]) == 0
    assert "42 evaluations of 48 rows in all" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "merge-analysis" and told["work"]["evaluations"] == 42
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "results").mkdir()
    there = tmp_path / "results" / "merge-analysis-recipe.yml.json"
    there.write_text("another's")
    assert main([*words, "--dry-run"]) == 0  # which writes nothing
    assert main(words) == 2 and there.read_text() == "another's"


def test_a_refused_analysis_leaves_nothing(spoken: Models, tasks: dict[str, Path], tmp_path: Path) -> None:
    own = write_rows(tmp_path / "own.jsonl", rows_of(spoken["base"], spoken["b"], 5, 60))
    with pytest.raises(InputError, match="b gains nothing on its own task"):
        kanna.merge_analyze(
            ties(spoken), {"a": tasks["a"], "b": own}, calibration_share=0.4, out=tmp_path / "results"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]
