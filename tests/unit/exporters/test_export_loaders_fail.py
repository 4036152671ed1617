"""A loader of others that breaks, however it does, is a check that failed: the export stays, and says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_models import llama, quantized

from kanna.checkpoint import lineage
from kanna.cli.main import main
from kanna.methods.export.formats.gptq import Gptq


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    return quantized(llama(root / "base"), root / "packed")


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (raising(IndexError("out of range")), "does not load it: IndexError: out of range"),
        (raising(SystemExit(1)), "does not load it: SystemExit: 1"),
        (lambda *_: raising(IndexError("out of range")), "loads it and does not run it: IndexError"),
        (lambda *_: raising(SystemExit(1)), "loads it and does not run it: SystemExit: 1"),
        (lambda *_: lambda ids: torch.zeros(1, ids.shape[1], 7), "gives logits of the shape [1, "),
    ],
)
def test_it_is_told_and_recorded(
    reader: Callable[..., Any],
    said: str,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Gptq, "reader", reader)
    words = ["export", str(packed), "--format", "gptq", "--out", str(tmp_path / "out"), "--check"]
    assert main(words) == 3
    told = capsys.readouterr()
    assert "check FAILED: kanna's own reader" in told.out and said in told.out and "error:" not in told.err
    recorded = lineage.read(tmp_path / "out")
    assert recorded is not None
    check = recorded.steps[-1].scores["check"]
    assert check["checked"] is True and check["passed"] is False and said in check["reason"]
