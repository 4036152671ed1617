"""The architecture's proof: a method in one file, added by one line of the table, has everything at once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from killing import hashes, killed_and_resumed, names_taken
from safetensors.torch import load_file

import kanna
from kanna import methods
from kanna.cli.main import main

Base = Callable[[str], Path]
KILLED = -9


@pytest.fixture(autouse=True)
def _in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.TABLE, "scale", "toy_method:METHOD")


def test_it_has_at_most_60_lines() -> None:
    lines = (Path(__file__).parents[2] / "support" / "toy_method.py").read_text().splitlines()
    assert len(lines) <= 60


def test_it_is_a_verb(bases: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "scale" in capsys.readouterr().out
    assert main(["scale", "--help"]) == 0
    assert "--by" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["scale", str(bases("llama")), "--by", "2", "--out", str(out), "--json", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "scale" and result["figures"]["matrices_scaled"] == 9
    before, after = (load_file(path / "model.safetensors") for path in (bases("llama"), out))
    for name, tensor in before.items():
        assert after[name].equal(tensor * 2 if ".mlp." in name else tensor)
    assert main(["scale", str(bases("llama")), "--by", "-1", "--out", str(tmp_path / "no"), "-q"]) == 2
    assert not (tmp_path / "no").exists() and "by: " in capsys.readouterr().err


def test_it_is_a_step_of_recipes_in_the_lineage_and_in_the_report(bases: Base, tmp_path: Path) -> None:
    steps = [{"scale": {"by": 0.5}}, {"lowrank": {"keep": 0.8, "method": "plain", "align": 1}}, {"scale": {}}]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(bases("gpt2")), "steps": steps}))
    out = tmp_path / "out"
    # The last step meets factors, which it does not take; what the steps before it finished is kept.
    with pytest.raises(kanna.InputError, match="step scale takes dense models only"):
        kanna.run(recipe, out=out)
    assert not out.exists() and (tmp_path / "out.kanna-work" / "model-2").is_dir()
    recipe.write_text(yaml.safe_dump({"model": str(bases("gpt2")), "steps": steps[:2]}))
    assert kanna.run(recipe, out=out, dry_run=True).steps[0].plan.matrices
    assert kanna.run(recipe, out=out, force=True).passed
    recorded = json.loads((out / "kanna.json").read_text())
    assert [step["method"] for step in recorded["steps"]] == ["scale", "lowrank"]
    assert recorded["steps"][0]["config"] == {"by": 0.5, "select": "mlp"}
    assert recorded["base"]["name"] == "gpt2"
    page = kanna.report([out], tmp_path / "page.html").html.read_text()
    assert "scale" in page and "gpt2 → scale → lowrank → out" in page
    schema = __import__("kanna.recipe.schema", fromlist=["json_schema"]).json_schema()
    assert any("scale" in choice["properties"] for choice in schema["properties"]["steps"]["items"]["oneOf"])


def test_killed_at_every_point_and_resumed_gives_the_same_bytes(bases: Base, tmp_path: Path) -> None:
    base = bases("llama")

    def run(out: Path, resume: bool) -> None:
        kanna.run({"model": str(base), "steps": [{"scale": {"by": 3}}]}, out=out, resume=resume)

    reference = tmp_path / "reference" / "out"
    points = names_taken(lambda: run(reference, False), tmp_path / "count")
    assert points >= 11  # the record of the run, nine pieces, the output
    for point in range(1, points + 1):
        for late in (False, True):
            if point == 1 and not late:
                continue  # nothing is there to be resumed before the first file
            out = tmp_path / f"{point}-{late}" / "out"
            status, resumed = killed_and_resumed(lambda resume, out=out: run(out, resume), point, late)
            assert (status, resumed) == (KILLED, 0), (point, late)
            assert hashes(out) == hashes(reference), (point, late)
            assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.run.json"]
