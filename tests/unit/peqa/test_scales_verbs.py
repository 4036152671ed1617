"""The verbs `tune` and `scales` on the command line."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import killing
import pytest

from kanna.cli.main import main
from kanna.training import loop


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


def test_one_damaged_set_hides_no_other(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, record = base / "scales" / "law" / "scales.safetensors", base / "scales" / "fine" / "scales.json"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    record.write_text("{")
    told = said(capsys, "scales", "verify", base, code=2)
    assert "2 of 3 sets" in told and "law" in told and "fine" in told and "whole are support" in told
    listed = json.loads(said(capsys, "scales", "list", base, "--json"))
    assert [one["name"] for one in listed["sets"]] == ["law", "support"] and [*listed["damaged"]] == ["fine"]
    assert "damaged: fine" in said(capsys, "scales", "list", base)


def test_a_set_that_is_not_there_leaves_no_trace(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("scales"))
    for words in (("use", bare, "law"), ("remove", bare, "law")):
        assert "no scales 'law'" in said(capsys, "scales", *words, code=2)
    assert not (bare / "scales").exists()


def test_no_space(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Wherever files are synced: one message, and nothing half-written."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = killing.hashes(base)
    monkeypatch.setattr("kanna.checkpoint.whole.os.fsync", full)
    for words in (
        ["export", base, "law", "--out", tmp_path / "law.safetensors"],
        ["diff", base, "law", "base", "--out", tmp_path / "map.html"],
        ["use", base, "law"],
    ):
        error = said(capsys, "scales", *words, code=2)
        assert "No space left" in error and "Traceback" not in error
    left = {name: digest for name, digest in killing.hashes(base).items() if not name.endswith(".lock")}
    assert left == {name: digest for name, digest in kept.items() if not name.endswith(".lock")}
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_divergence_is_said_and_the_last_good_state_kept(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """From the sixth step on nothing is finite any more."""
    real, done = loop.summed_loss, []

    def breaking(model, examples, *more):
        found = real(model, examples, *more)
        if found.requires_grad:
            done.append(1)
        return found * float("nan") if len(done) > 6 else found

    monkeypatch.setattr(loop, "summed_loss", breaking)
    words = ["tune", base, "--data", data, "--name", "new", "--rows", 8, "--granularity", "group"]
    told = said(capsys, *words, "--steps", 24, "--rate", 0.02)
    record = json.loads((base / "scales" / "new" / "scales.json").read_text())
    best = record["scores"]["best_step"]
    assert 0 < best <= 6 and "stopped early: a loss that is not finite" in told and "lower rate" in told
    assert "not finite" in record["scores"]["stopped"]
    losses = dict(map(tuple, record["scores"]["validation"]))
    assert record["scores"]["held_out_loss_after"] == losses[best] == min(losses.values())


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
        (["scales", "use", base, "quite-another"], "has no scales 'quite-another'\n"),
        (["scales", "use", base, "lww"], "there are fine, law, support"),
        (["scales", "list", bases("llama")], "no whole numbers"),
        (["scales", "import", base, base / "model.safetensors"], "is no set of scales"),
        (["scales", "rollback", base], "nothing to go back to"),
    ):
        error = said(capsys, *words, code=2)
        assert problem in error.lower(), error
    assert not list((base / "scales").glob("new*"))
