"""A merge is compared with its experts on their tasks, and with the base."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from kanna.cli.main import main


@pytest.fixture(scope="module")
def split(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models with a tokenizer that takes words apart."""
    room = tmp_path_factory.mktemp("split")
    for name, path in models.items():
        shutil.copytree(path, room / name)
        tokenizer = Tokenizer.from_file(str(room / name / "tokenizer.json"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(room / name / "tokenizer.json"))
    return {name: room / name for name in models}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "task.jsonl"
    lines = [
        {"prompt": f"t{n} t{n + 1}", "choices": [f"t{n + 2}", f"t{n + 40}"], "label": 0} for n in range(3, 15)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def recipe(models: dict[str, Path], tmp_path: Path, weights: tuple[float, float]) -> Path:
    listed = [
        {"model": str(models[name]), "parameters": {"weight": weight}}
        for name, weight in zip("ab", weights, strict=True)
    ]
    given = {"merge_method": "task_arithmetic", "models": listed, "base_model": str(models["base"])}
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump({**given, "out_dtype": "float32"}))
    return file


def test_beside_the_expert_and_the_base(
    split: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all of one expert in it, nothing is lost beside that one; figures are those of compare."""
    file = recipe(split, tmp_path, (1.0, 0.0))
    words = [
        "merge",
        "run",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--task",
        f"a={rows}",
        "--max-drop",
        "30pt",
    ]
    status = main([*words, "--json"])
    captured = capsys.readouterr()
    assert status in (0, 3), captured.err
    told = json.loads(captured.out)
    (task,) = told["tasks"]
    assert task["expert"] == "a"
    # As compare does: a random model knows no task, so nothing is judged by it.
    assert status == (0 if task["beside_expert"]["status"] in ("pass", "not judged") else 3)
    compared = [
        "compare",
        str(split["base"]),
        str(tmp_path / "out"),
        "--task",
        str(rows),
        "--max-drop",
        "30pt",
    ]
    main([*compared, "--no-distribution", "--json"])
    again = json.loads(capsys.readouterr().out)
    assert task["beside_base"]["tasks"] == again["tasks"]
    kept = json.loads((tmp_path / "out" / "merge.json").read_text())["tasks"]
    assert "t3" not in json.dumps(kept)  # no row of the task
    for side in ("beside_expert", "beside_base"):
        same = ("base", "model", "status", "explanation")
        assert {key: kept[0][side][key] for key in same} == {key: task[side][key] for key in same}
        (before,), (after,) = kept[0][side]["tasks"], task[side]["tasks"]
        assert (before["base"], before["new"], before["decision"]) == (
            after["base"],
            after["new"],
            after["decision"],
        )
    assert kept[0]["beside_expert"]["model"]["model"] == "out"
    assert main(["merge", "verify", str(tmp_path / "out")]) == 0
    assert "## Beside a, which knows the task" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    said = (tmp_path / "page.md").read_text()
    titles = ("out against a", "What the tasks of a gained beside the base", "Differences from the base by")
    assert all(title in said for title in titles)
    assert "was not compared with its base" not in said
    low, high = kept[0]["beside_expert"]["tasks"][0]["decision"]["interval"]
    assert low <= high
    shown = ["merge", "run", str(file), "--out", str(tmp_path / "shown"), *words[5:]]
    main(shown)
    said = capsys.readouterr().out
    assert "beside a, which knows the task" in said
    assert re.search(r"beside the base: \S+: \S+ .* -> .*, [+-]\S+ pt \(.* to .*\)", said)
    assert said.count("verdict: ") == 1, "the base is no expert of the task"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "c=task.jsonl", "--max-drop", "1%"], "names no model of the recipe"),
        (["--task", "a", "--max-drop", "1%"], "names no model of the recipe and a file"),
        (["--task", "a=nowhere.jsonl", "--max-drop", "1%"], "nowhere.jsonl"),
        (["--max-drop", "1%"], "says nothing without a task"),
        (["--task", "a=nowhere.jsonl", "--max-drop", "most"], "most"),
    ],
)
def test_tasks_that_are_none(
    words: list[str],
    said: str,
    split: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = recipe(split, tmp_path, (0.5, 0.5))
    assert main(["merge", "run", str(file), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
