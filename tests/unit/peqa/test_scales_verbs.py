"""The verbs `tune` and `scales` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kanna.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out if code in (0, 3) else captured.err


def test_a_set_from_end_to_end(
    base: Path, data: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", base, "--data", data, "--name", "new", "--steps", 4, "--rows", 8, "--allow-overlap"]
    plan = said(capsys, *tune, "--dry-run", "--json")
    assert json.loads(plan)["plan"]["trainable"] > 0 and not (base / "scales" / "new").exists()
    told = said(capsys, *tune, "--task", asked)
    assert "numbers learnt (channel)" in told and "changed its sign" in told
    assert f"written: {base / 'scales' / 'new'}" in told
    assert "exists already" in said(capsys, *tune, code=2)
    said(capsys, *tune, "--force")
    said(capsys, "scales", "use", base, "new")
    listed = json.loads(said(capsys, "scales", "list", base, "--json"))
    assert listed["active"] == "new"
    assert [one["name"] for one in listed["sets"]] == ["fine", "law", "new", "support"]
    starred = [line for line in said(capsys, "scales", "list", base).splitlines() if "*" in line]
    assert len(starred) == 1 and "new" in starred[0]
    assert "in use: the model as it was quantised" in said(capsys, "scales", "rollback", base)
    assert "one for each row" in said(capsys, "scales", "show", base, "new")
    assert "down_proj" in said(capsys, "scales", "diff", base, "law", "base", "--out", tmp_path / "map.html")
    drawn = (tmp_path / "map.html").read_text()
    assert drawn.count("model.layers.2.mlp.down_proj: ") >= 1 and "mlp.up_proj" in drawn
    assert "exists already" in said(
        capsys, "scales", "diff", base, "law", "base", "--out", tmp_path / "map.html", code=2
    )
    said(capsys, "scales", "export", base, "new", "--out", tmp_path / "new.safetensors")
    said(capsys, "scales", "remove", base, "new")
    said(capsys, "scales", "import", base, tmp_path / "new.safetensors")
    assert "fine, law, new, support" in said(capsys, "scales", "verify", base)


def test_bad_input(
    base: Path, data: Path, bases: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, problem in (
        (["tune", base, "--data", data, "--name", "no/slash"], "letters, digits"),
        (["tune", base, "--data", data, "--name", "new", "--scale-range", "2,3"], "holds 1"),
        (["tune", base, "--data", base / "config.json", "--name", "new"], "config.json"),
        (["tune", base, "--data", data], "name"),
        (["tune", bases("llama"), "--data", data, "--name", "new"], "no matrix of whole numbers"),
        (["scales", "use", base, "lww"], "did you mean"),
        (["scales", "list", bases("llama")], "no whole numbers"),
        (["scales", "import", base, base / "model.safetensors"], "is no set of scales"),
        (["scales", "rollback", base], "nothing to go back to"),
    ):
        error = said(capsys, *words, code=2)
        assert problem in error.lower(), error
    assert not list((base / "scales").glob("new*"))
