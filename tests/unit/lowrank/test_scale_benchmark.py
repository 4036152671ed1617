"""benchmarks/scale.py on models of a few kilobytes."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("scale")
    monkeypatch.setattr(module, "_VOCABULARY", 70)
    monkeypatch.setattr(module, "SHAPES", [module.Shape(64, 96, 2, 2, 1), module.Shape(64, 96, 4, 2, 1)])

    def in_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """No process of its own for each run."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            module.main(command[2:])
        return subprocess.CompletedProcess(command, 0, said.getvalue())

    monkeypatch.setattr(module.subprocess, "run", in_here)
    yield module
    sys.modules.pop("scale", None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says a peak anew")
def test_each_shape_is_made_once_and_told(scale: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text, words = tiny.text(tmp_path / "text.jsonl"), tiny.tokenizer()
    words.save_pretrained(tmp_path / "tokenizer")
    asked = ["--text", text, "--tokenizer", tmp_path / "tokenizer", "--journal", tmp_path / "j.jsonl"]
    asked += ["--room", tmp_path / "room", "--tokens", 512]
    scale.main([str(word) for word in asked])
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["64x2, 512 tokens, keep 0.8", "64x4, 512 tokens, keep 0.8"]
    for row in rows:
        assert row["passed"] and {"forward", "loss", "survey", "replace", "verify"} <= row["stages"].keys()
        assert row["foretold"].keys() <= row["stages"].keys() and row["work"] > row["left_in_cache"] > 0
    assert rows[1]["operations"] > 1.5 * rows[0]["operations"]
    said = capsys.readouterr().out
    assert "64x4" in said and "foretold" in said and not list((tmp_path / "room").glob("model*"))
    scale.main([str(word) for word in asked])
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 2
