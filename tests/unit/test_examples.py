"""The recipes and the notebook in examples/ run as they are, from the root of the repository."""

import ast
import json
import re
import tempfile
from pathlib import Path

import pytest
import yaml

from kanna.cli.main import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Name -> methods in the lineage, and whether the result still needs kanna.
EXPECTED = {
    "lowrank": (["lowrank"], True),
    "edit-then-shrink": (["laser", "lowrank"], True),
    "shrink-twice-and-export": (["lowrank", "lowrank", "export"], False),
    "shrink-quantize-tune": (["lowrank", "quantize", "tune"], True),
    "judged": (["lowrank"], True),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_every_recipe_is_expected_and_has_its_line() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == EXPECTED.keys()
    lines = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\* \[([\w-]+)\.yaml\]", lines, re.MULTILINE)) == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_it_says_how_it_is_run_and_can_be_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = EXAMPLES / f"{name}.yaml"
    assert re.search(rf"^#   kanna run examples/{name}.yaml --out \w+$", path.read_text(), re.MULTILINE)
    assert main(["run", str(path), "--dry-run", "--threads", "1", "-q"]) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KANNA_CACHE", str(cache))
    methods, needs_kanna = EXPECTED[name]
    out = tmp_path / "out"
    assert main(["run", f"examples/{name}.yaml", "--out", str(out), "--threads", "1", "-q"]) == 0
    recorded = json.loads((out / "kanna.json").read_text())
    assert [step["method"] for step in recorded["steps"]] == methods
    assert recorded["base"]["name"] == "model"
    assert ("quantization_config" in json.loads((out / "config.json").read_text())) is needs_kanna
    scores = recorded["steps"][-1]["scores"]
    recipe = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    assert ("comparison" in scores) is ("tolerance" in recipe)
    assert scores.get("comparison", {}).get("status", "pass") == "pass"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


def test_two_keeps_multiply_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/recipes.md and the example say of keep: of what is stored now, 0.8 and then 0.75 of that."""
    monkeypatch.chdir(ROOT)
    recipe = yaml.safe_load((EXAMPLES / "shrink-twice-and-export.yaml").read_text())
    keeps = [step["lowrank"]["keep"] for step in recipe["steps"] if "lowrank" in step]
    plain = {"method": "plain", "allocation": "uniform", "select": "mlp@-1", "align": 1}
    steps = [{"lowrank": {**plain, "keep": keep}} for keep in keeps]
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump({"model": recipe["model"], "steps": steps}))
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--json", "--threads", "1", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    kept = [step["figures"]["keep_selected"] for step in result["steps"]]
    assert kept == [pytest.approx(0.8, abs=0.02), pytest.approx(0.75, abs=0.02)]
    assert result["figures"]["keep_selected_of_dense"] == pytest.approx(0.6, abs=0.02)


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in their order, as a notebook runs them but for the kernel: no Jupyter is needed here.

    What a cell ends with is shown as a notebook would: as HTML where it has one, else as its repr.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    book = json.loads((EXAMPLES / "first-hour.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and "first-hour.ipynb" in (EXAMPLES / "README.md").read_text()
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in book["cells"] if cell["cell_type"] == "code")
    names: dict[str, object] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        parsed = ast.parse(cell)
        last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
        exec(compile(parsed, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            drawn = getattr(value, "_repr_html_", None)
            shown.append(repr(value) if drawn is None else drawn())
    assert len(shown) == 6
    assert "LlamaForCausalLM, 5 blocks" in shown[0] and "99.28 %" in shown[1]
    assert "FAIL" in shown[3] and "is the smallest that would pass" in shown[3] and "PASS" in shown[4]
    assert "% of the bytes, pass" in shown[5]
