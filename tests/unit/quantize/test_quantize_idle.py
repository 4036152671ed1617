"""Settings without effect are named in the plan, and no others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kanna.cli.main import main


@pytest.mark.parametrize(
    ("words", "with_text", "with_task", "said"),
    [
        (["--context", "16", "--refit"], False, False, ["--context, --refit: no effect without calibration"]),
        (["--seed", "3"], False, False, ["--seed: no effect without calibration text"]),
        (["--context", "16"], False, True, []),
        (["--context", "16", "--refit"], True, False, []),
        (["--ridge", "0.1"], True, False, ["--ridge: no effect without --inputs anchored"]),
        (["--ridge", "0.1", "--inputs", "anchored"], True, False, []),
        (
            ["--method", "mse", "--batch", "2"],
            True,
            False,
            ["--calibration: no effect, since mse reads no text", "--batch: no effect without"],
        ),
        (["--method", "hqq", "--symmetric"], False, False, ["the same as minmax"]),
        ([], False, False, []),
    ],
)
def test_what_has_no_effect_is_said(
    words: list[str],
    with_text: bool,
    with_task: bool,
    said: list[str],
    bases: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["quantize", str(bases("llama")), "--bits", "4", "--group", "8", *words]
    given += ["--calibration", str(text)] if with_text else []
    given += ["--task", str(text)] if with_task else []
    assert main([*given, "--out", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["plan"]["notes"]
    assert len(notes) == len(said), notes
    assert all(expected in note for expected, note in zip(said, notes, strict=True)), notes
