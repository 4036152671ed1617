"""`kanna run` takes files of merges; recipes stay what they are."""

from pathlib import Path

import pytest
import yaml
from merge_models import weights

import kanna
from kanna.cli.main import main


@pytest.fixture
def recipe(models: dict[str, Path], tmp_path: Path) -> Path:
    listed = [{"model": str(models[name]), "parameters": {"weight": 1}} for name in ("a", "b")]
    file = tmp_path / "merge.yml"
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": listed}))
    return file


def test_a_file_with_a_merge_method_is_merged(recipe: Path, tmp_path: Path) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    kanna.merge(recipe, tmp_path / "same")
    first, second = weights(tmp_path / "out"), weights(tmp_path / "same")
    assert all((first[name] == second[name]).all() for name in first)


def test_what_run_cannot_say_of_a_merge(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe)]) == 2
    assert "give --out DIR" in capsys.readouterr().err
    assert main(["run", str(recipe), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    with pytest.raises(kanna.InputError, match="a file of merge"):
        kanna.run(yaml.safe_load(recipe.read_text()))
