"""Sweeps: what varies, what a point scores, which one is chosen, and what is written of it."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import hashes, in_child
from tuned_tasks import rows_of, split_words, tasks_of, write_rows

import kanna
from kanna.checkpoint.loader import load_weights
from kanna.checkpoint.reader import Checkpoint
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.reading import read_recipe
from kanna.methods.merge.tuning.axes import grid, read_axis, varied
from kanna.methods.merge.tuning.held import model_of, tensors_of
from kanna.methods.merge.tuning.samples import Notebook, Sample, Scale, best, scale, worth
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_rows
from kanna.tasks.options import EvalOptions

Models = dict[str, Path]
Given = dict[str, Any]


@pytest.fixture(scope="module")
def spoken(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return split_words(models, tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def tasks(spoken: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tasks_of(spoken, tmp_path_factory.mktemp("tasks"))


def arithmetic(models: Models, **top: Any) -> Given:
    listed = [{"model": str(models[name]), "parameters": {"weight": 1.0}} for name in "ab"]
    given = {"merge_method": "task_arithmetic", "base_model": str(models["base"]), "models": listed}
    return {**given, "out_dtype": "float32", **top}


def names(models: Models) -> dict[str, str]:
    return {name: str(path) for name, path in models.items()}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lambda=0.3:1.2:0.1", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]),
        ("lambda=1:0:-0.5", [1.0, 0.5, 0.0]),
        ("weight=0.5,1,0.5", [0.5, 1.0]),
        ("weight@a=2", [2.0]),
        ("lambda=0:0.9:0.4", [0.0, 0.4, 0.8]),
    ],
)
def test_values_are_those_that_are_written(text: str, values: list[float], spoken: Models) -> None:
    assert list(read_axis(text, read_recipe(arithmetic(spoken)), names(spoken)).values) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lambda", "does not say what varies"),
        ("weight@=1", "does not say what varies"),
        ("lambda=", "no numbers"),
        ("lambda=0:1:0", "no numbers"),
        ("lambda=1:0:0.1", "no numbers"),
        ("lambda=nan", "no numbers"),
        ("lamda=1", "did you mean"),
        ("density=0.5", "no number that task_arithmetic has"),
        ("normalize=1", "no number that task_arithmetic has"),
        ("lambda@a=1", "for one model"),
        ("weight@c=1", "no model of the recipe"),
    ],
)
def test_what_cannot_vary_is_refused(text: str, said: str, spoken: Models) -> None:
    with pytest.raises(InputError, match=said):
        read_axis(text, read_recipe(arithmetic(spoken)), names(spoken))


def test_bounds_and_repetitions(spoken: Models) -> None:
    recipe = read_recipe({**arithmetic(spoken), "merge_method": "ties"})
    with pytest.raises(InputError, match=r"tries 1\.5"):
        read_axis("density=0.5,1.5", recipe, names(spoken))
    twice = [read_axis(text, recipe, names(spoken)) for text in ("lambda=1", "lambda=2")]
    with pytest.raises(InputError, match="varies twice"):
        grid(twice)
    with pytest.raises(InputError, match="nothing varies"):
        grid([])


def test_a_value_takes_the_place_of_all_that_a_recipe_says(spoken: Models) -> None:
    """Of one model in every slice; of all models also where filters and gradients stood."""
    a, b, base = (str(spoken[name]) for name in ("a", "b", "base"))
    graded = {"weight": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.2}]}
    of_a = {"kind": "model_token", "model": a, "token": "t6"}
    entry = lambda model: {"model": model, "layer_range": [0, 1], "parameters": dict(graded)}  # noqa: E731
    document = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "parameters": {"weight": 0.7, "lambda": 2},
        "slices": [{"sources": [entry(base), entry(a), entry(b)], "parameters": {"lambda": 3}}] * 2,
        "tokenizer": {"source": "base", "tokens": {"t5": {"source": of_a}}},
    }
    recipe = read_recipe(document)
    axes = [read_axis(text, recipe, names(spoken)) for text in ("weight@a=0.5", "lambda=4")]
    found = varied(document, axes, (0.5, 4.0))
    for part in found["slices"]:
        assert [one["parameters"] for one in part["sources"]] == [graded, {"weight": 0.5}, graded]
        assert part["parameters"] == {}
    assert found["parameters"] == {"weight": 0.7, "lambda": 4.0}
    assert found["tokenizer"] == document["tokenizer"]
    shared = varied(document, [read_axis("weight=0.4", recipe, names(spoken))], (0.4,))
    assert [one["parameters"] for one in shared["slices"][0]["sources"]] == [{}, {}, {}]
    assert document["parameters"] == {"weight": 0.7, "lambda": 2}
    both = [read_axis(text, recipe, names(spoken)) for text in ("weight@a=0.5", "weight=0.4")]
    closer = varied(document, both, (0.5, 0.4))
    assert closer["slices"][0]["sources"][1]["parameters"] == {"weight": 0.5}


@pytest.mark.parametrize(
    "top",
    [
        {"parameters": {"lambda": 0.7}},
        {"merge_method": "ties", "parameters": {"density": 0.4}, "out_dtype": "bfloat16"},
        {"merge_method": "dare_linear", "parameters": {"density": 0.5}, "out_dtype": "float16"},
        {"merge_method": "model_stock"},
        {"merge_method": "ties", "parameters": {"density": 0.3, "scope": "model"}},
    ],
)
def test_a_merge_in_memory_is_the_written_one(top: Given, spoken: Models, tmp_path: Path) -> None:
    recipe = arithmetic(spoken, **top)
    merged = kanna.merge(recipe, tmp_path / "out", seed=3)
    assert "MergeResult: passed" in repr(merged) and "MergeResult: passed" in merged._repr_html_()
    written = load_weights(Checkpoint.open(tmp_path / "out"), torch.float32)
    plan = kanna.merge_plan(recipe, seed=3)
    held = model_of(tmp_path / "out", tensors_of(plan), EvalOptions())
    assert type(held) is type(written) and not held.training
    states = held.state_dict(), written.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def greedy(model: Path, rows: Path) -> tuple[float, float]:
    """Share of greedy-right answers and mean probability, by the ordinary evaluation of a directory."""
    (score,) = kanna.evaluate(model, [rows], fresh=True).scores
    odds = [math.exp(-record.values["log_loss"]) for record in score.records]
    return score.value, sum(odds) / len(odds)


def test_points_are_those_of_written_merges(spoken: Models, tasks: dict[str, Path], tmp_path: Path) -> None:
    """Each point against a merge on disk that is evaluated like any model; the best of them is written."""
    out = tmp_path / "out"
    done = kanna.merge_sweep(
        arithmetic(spoken), ["weight@a=0:1:0.5", "weight@b=0.5,1"], tasks, out, calibration_share=0.5
    )
    sweep = done.sweep
    assert sweep is not None and sweep.evaluations == (6 + 2) * 2 and done.passed
    choosing, judging = {}, {}
    for name, file in tasks.items():
        rows = read_rows(file)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        parts = split_rows(rows, 0.5, 0)
        choosing[name], judging[name] = (
            write_rows(tmp_path / f"{name}-{part}.jsonl", [lines[place] for place in places])
            for part, places in enumerate(parts)
        )
        assert not {lines[i]["group"] for i in parts[0]} & {lines[i]["group"] for i in parts[1]}
    ends = {
        name: (greedy(spoken["base"], file)[0], greedy(spoken[name], file)[0])
        for name, file in choosing.items()
    }
    means = []
    for number, point in enumerate(sweep.points):
        recipe = arithmetic(spoken)
        for entry, value in zip(recipe["models"], point.values, strict=True):
            entry["parameters"]["weight"] = value
        place = tmp_path / f"point-{number}"
        kanna.merge(recipe, place)
        found = {name: greedy(place, file) for name, file in choosing.items()}
        assert {name: one[0] for name, one in found.items()} == pytest.approx(point.scores)
        assert {name: one[1] for name, one in found.items()} == pytest.approx(point.probabilities)
        shares = [(found[name][0] - low) / (high - low) for name, (low, high) in ends.items()]
        means.append((sum(shares) / 2, sum(one[1] for one in found.values()) / 2))
        assert point.normalised == pytest.approx(means[-1][0])
    assert [point.values for point in sweep.points] == [(a, b) for a in (0, 0.5, 1) for b in (0.5, 1)]
    assert means[sweep.chosen] == max(means)
    assert len({point.normalised for point in sweep.points}) > 2  # else nothing could be chosen wrongly
    chosen = tmp_path / f"point-{sweep.chosen}"
    assert hashes(chosen)["model.safetensors"] == hashes(out)["model.safetensors"]
    assert json.loads((out / "merge-sweep.json").read_text()) == sweep.to_dict()
    assert (
        yaml.safe_load((out / "recipe.yaml").read_text())["models"][0]["parameters"]["weight"]
        == (sweep.points[sweep.chosen].values[0])
    )
    assert sweep.test is not None
    for task in sweep.test.tasks:
        file = judging[task.expert]
        values = [greedy(model, file)[0] for model in (spoken["base"], spoken[task.expert], out)]
        assert [task.base, task.of_expert, task.merged] == pytest.approx(values)
        assert task.normalised == pytest.approx((values[2] - values[0]) / (values[1] - values[0]))
        assert task.rows == len(read_rows(file))
    assert kanna.merge_verify(out).passed


def test_ties_are_broken_by_probability() -> None:
    scales = {"a": Scale(0.2, 0.5), "b": Scale(0.0, 1.0)}
    right = Sample((1.0, 0.0), (0.5, 0.3))
    scored = [
        {"a": right, "b": Sample((0.0, 0.0), (0.1, 0.1))},
        {"a": right, "b": Sample((0.0, 0.0), (0.1, 0.2))},
        {"a": right, "b": Sample((0.0, 0.0), (0.1, 0.2))},
        {"a": Sample((0.0, 0.0), (0.9, 0.9)), "b": Sample((0.0, 0.0), (0.9, 0.9))},
    ]
    worths = [worth(scales, one) for one in scored]
    assert worths[1].normalised == pytest.approx((0.6 + 0.0) / 2)
    assert worths[1].probability == pytest.approx((0.4 + 0.15) / 2)
    assert best(worths) == 1
    assert scale("task", "a", Sample((0.0,), (0.1,)), right) == Scale(0.0, 0.5)
    with pytest.raises(InputError, match=r"a gains nothing .* 0\.5000 .* base 0\.5000"):
        scale("task", "a", right, right)


@pytest.mark.parametrize("point", [1, 3, 5, 8])
def test_a_killed_sweep_goes_on_to_the_same_bytes(
    point: int, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """Killed behind any evaluation, be it of base and experts; what stands there is not computed again."""
    given: Given = {"calibration_share": 0.4, "max_drop": "50pt"}
    vary = ["lambda=0.5,1"]

    def run(place: Path, resume: bool) -> None:
        place.parent.mkdir(exist_ok=True)
        kanna.merge_sweep(arithmetic(spoken), vary, tasks, place, resume=resume, **given)

    def dying(last: int) -> None:
        original, count = Notebook.add, 0

        def add(self: Notebook, candidate: str, task: str, found: Sample) -> None:
            nonlocal count
            original(self, candidate, task, found)
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

        Notebook.add = add  # type: ignore[method-assign]

    def killed() -> None:
        dying(point)
        run(tmp_path / "killed" / "out", False)

    def resumed() -> None:
        dying(9 - point)  # as many as are missing, and one more
        run(tmp_path / "killed" / "out", True)

    assert in_child(lambda: run(tmp_path / "whole" / "out", False)) == 0
    assert in_child(killed) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "out").exists()
    assert in_child(resumed) == 0
    ours, theirs = hashes(tmp_path / "whole" / "out"), hashes(tmp_path / "killed" / "out")
    assert ours == theirs and "merge-sweep.json" in ours
    assert not (tmp_path / "killed" / "out.kanna-work").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": {"base": "a"}}, "base has no expert"),
        ({"tasks": {"c": "a"}}, "c has no expert"),
        ({"tasks": {}}, "no task"),
        ({"calibration_share": 0.1}, r"decide nothing(.|\n)*200 rows"),
        ({"calibration_share": 1.0}, "share"),
        ({"tests": {"c": "a"}}, "--test names c"),
        ({"tests": {"a": "b-of-a"}}, "share .* groups"),
        ({"tests": {"a": "same"}}, "ask what rows of"),
        ({"evaluation": EvalOptions(metric="bleu")}, "no mean over rows"),
        ({"evaluation": EvalOptions(metric="acc")}, "no metric for rows of kind answer"),
        ({"tasks": {"a": "b"}}, "a gains nothing on its own task"),
        ({"base": "nowhere"}, "nowhere"),
    ],
)
def test_bad_requests_write_nothing(
    change: Given, said: str, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in tasks["a"].read_text().splitlines()]
    files = {
        **tasks,
        "b-of-a": write_rows(tmp_path / "groups.jsonl", [{"prompt": "t9", "answer": " t8", "group": "g1"}]),
        "same": write_rows(tmp_path / "same.jsonl", [{**lines[0], "group": "other"}]),
        # Of the base's own answers, which an expert can only lose.
        "b": write_rows(tmp_path / "base.jsonl", rows_of(spoken["base"], spoken["a"], 5, 60)),
    }
    given: Given = {"tasks": {"a": "a"}, "calibration_share": 0.4, **change}
    for key in ("tasks", "tests"):
        if key in given:
            given[key] = {name: files[file] for name, file in given[key].items()}
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=said):
        kanna.merge_sweep(arithmetic(spoken), ["lambda=1"], given.pop("tasks"), tmp_path / "out", **given)
    assert hashes(tmp_path) == before


def test_the_verb(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of evaluations comes first; a dry run says it and does nothing; a drop beyond is exit 3."""
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(arithmetic(spoken)))
    words = ["merge", "sweep", str(file), "--vary", "lambda=0,1", "--calibration-share", "0.4"]
    for name, rows in tasks.items():
        words += ["--task", f"{name}={rows}"]
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["work"]["evaluations"] == 8 and found["work"]["rows"] == 48
    assert main([*words, "--metric", "logloss", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("8 evaluations of 48 rows in all, 2 merges")
    told = json.loads(shown.out)
    assert (
        told["tasks"][0]["metric"] == "log_loss" and told["tasks"][0]["base"] < 0 < told["tasks"][0]["gain"]
    )
    assert told["written"] is None and sorted(tmp_path.iterdir()) == [file]
    # With lambda 0 alone the merge is the base, which lacks what the experts know.
    words[4] = "lambda=0"
    assert main([*words, "--max-drop", "1pt", "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().out
    assert "Chosen: lambda 0, with 0.0 % of what the experts gain" in said and "fail" in said
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    assert "Sweep of task_arithmetic" in (tmp_path / "page.html").read_text()


def test_a_damaged_note_is_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    book = Notebook.open(path)
    book.add("one", "a", Sample((1.0, 0.0), (0.5, 0.1 + 0.2)))
    book.add("two", "a", Sample((1.0,), (0.5,)))
    path.write_bytes(path.read_bytes()[:-5])
    again = Notebook.open(path)
    assert again.known == {("one", "a"): Sample((1.0, 0.0), (0.5, 0.1 + 0.2))}
    again.add("three", "a", Sample((1.0,), (0.5,)))
    assert len(Notebook.open(path).known) == 2


def test_guards_are_judged_beside_the_base(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perplexity as the ordinary evaluation has it; where it rises beyond what is allowed, exit 3."""
    text = tmp_path / "prose.txt"
    text.write_text(" ".join(f"t{(7 * place) % 397 + 3}" for place in range(200)))
    given: Given = {"calibration_share": 0.4, "guards": [f"{text}=50%"]}
    done = kanna.merge_sweep(arithmetic(spoken), ["lambda=0.5"], tasks, tmp_path / "out", **given)
    assert "<table" in done._repr_html_() and len(repr(done)) < 300
    assert done.sweep is not None and done.sweep.test is not None
    (guard,) = done.sweep.test.guards
    places = (spoken["base"], tmp_path / "out")
    values = [kanna.evaluate(place, [text], fresh=True).scores[0].value for place in places]
    assert [guard.base, guard.merged] == pytest.approx(values) and guard.metric == "perplexity"
    assert values[0] != pytest.approx(values[1], rel=1e-3)
    assert guard.beside_base.tolerance == "50%" and done.passed == (guard.beside_base.status == "pass")
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(arithmetic(spoken)))
    words = ["merge", "sweep", str(file), "--vary", "lambda=20", "--calibration-share", "0.4"]
    words += [word for name, rows in tasks.items() for word in ("--task", f"{name}={rows}")]
    assert main([*words, "--guard", f"{text}=1%"]) == 3
    assert "What must not suffer" in capsys.readouterr().out
    assert main([*words, "--guard", str(text)]) == 2
    assert "has no tolerance" in capsys.readouterr().err
