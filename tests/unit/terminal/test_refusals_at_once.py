"""Refusals that need no library: what was asked for is wrong, and torch is not waited for to say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[3] / "src" / "kanna" / "demo" / "model"
# Commands that are wrong -> what is said of it. HERE is a directory that exists, ROWS a task.
WRONG = {
    "eval /none --task ROWS": "no model '/none'",
    "eval MODEL --task none.jsonl": "none.jsonl does not exist",
    "compare MODEL /none --task ROWS": "no model '/none'",
    "compare MODEL MODEL --task none.jsonl --max-drop 1%": "none.jsonl does not exist",
    "lowrank MODEL --keep 0.5 --out HERE": "exists already",
    "lowrank MODEL --keep 0.5 --out new --calibration none.txt": "none.txt does not exist",
    "lowrank MODEL --keep 0.5 --out new --task none.jsonl": "none.jsonl does not exist",
    "lowrank MODEL --keep 80 --out new": "did you mean 0.8",
    "lowrank MODEL --keep 80% --out new": "write 0.8",
    "basel /none --keep 0.5 --data ROWS --out new": "no model '/none'",
    "quantize /none --bits 4 --out new": "no model '/none'",
    "export /none --format dense --out new": "no model '/none'",
    "bench /none": "no model '/none'",
    "inspect /none": "no model '/none'",
    "generate /none --prompt a": "no model '/none'",
    "laser search MODEL --task none.jsonl --out new": "none.jsonl does not exist",
    "laser apply /none --edit down:-1:k=4 --out new": "no model '/none'",
}
_PROGRAM = """
import contextlib, io, json, sys
from kanna.cli.main import main
said = []
for words in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(words)
    said.append([code, error.getvalue(), "torch" in sys.modules])
print(json.dumps(said))
"""


def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    places = {"HERE": str(tmp_path), "ROWS": str(tmp_path / "rows.jsonl"), "MODEL": str(DEMO)}
    asked = [[places.get(word, word) for word in command.split()] for command in WRONG]
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(asked)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    for command, (code, said, torch) in zip(WRONG, json.loads(ran.stdout), strict=True):
        assert code == 2 and WRONG[command] in " ".join(said.split()), (command, said)
        assert not torch, command
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["lowrank", "eval", "task check", "laser search", "merge run"])
def test_help_is_short_and_literal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from kanna.cli.main import main

    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert "<bool>" not in said and "Common options: --json" in said
    assert "Print the result as JSON" not in said
    assert main(["--help"]) == 0
    root = capsys.readouterr().out
    assert "Print the result as JSON" in root and "<bool>" not in root
