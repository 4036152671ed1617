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
    "lowrank MODEL --keep 0.5": "no output directory was given",
    "lowrank MODEL --keep 0.5 --out new": "needs calibration text",
    "lowrank MODEL --keep 0.5 --method nonsense --out new": "--method: must be 'anchored'",
    "lowrank MODEL --keep 0.5 --method plain --select q@@ --out new": "cannot read 'q@@' in the selection",
    "lowrank MODEL --keep 0.5 --method plain --select re:( --out new": "is no regular expression",
    "lowrank MODEL --keep 0.5 --method plain --device cdua --out new": "did you mean cuda?",
    "lowrank MODEL --keep 0.5 --method plain --task ROWS --max-drop much --out new": "tolerance 'much'",
    "lowrank MODEL --keep 0.5 --method plain --max-drop 1% --out new": "--max-drop says nothing without",
    "lowrank MODEL --keep 0.5 --method plain --task ROWS --guard x --out new": "guard 'x' has no tolerance",
    "lowrank MODEL --keep 0.5 --method plain --metric acc --out new": "a metric says nothing without",
    "lowrank MODEL --keep 0.5 --method plain --task ROWS --metric akk --out new": "'akk' is no metric",
    "lowrank MODEL --keep 0.5 --method plain --tolerance none.yaml --out new": "none.yaml does not exist",
    "quantize MODEL --bits 99 --out new": "--bits: must be at most 8",
    "quantize MODEL --bits 4 --method gptq --out new": "gptq needs calibration text",
    "tune MODEL --data none.jsonl --name a": "none.jsonl does not exist",
    "basel MODEL --keep 0.5 --data none.jsonl --out new": "none.jsonl does not exist",
    "eval MODEL": "there is nothing to evaluate on",
    "eval MODEL --task ROWS --dtype float8": "--dtype: must be 'float32'",
    "eval MODEL --task ROWS --limit 0": "--limit: must be at least 1",
    "compare MODEL MODEL": "there is nothing to compare on",
    "compare MODEL MODEL --task ROWS --max-drop 1% --confidence 2": "confidence 2.0 must lie between",
    "bench MODEL --batch x": "these are no whole numbers",
    "bench MODEL --repeats 0": "--repeats: must be at least 1",
    "bench MODEL --price none.yaml": "none.yaml does not exist",
    "bench MODEL --dtype float8": "--dtype: must be 'float32'",
    "inspect MODEL --plot x.txt": "x.txt is no picture file",
    "inspect MODEL --select q@@": "cannot read 'q@@' in the selection",
    "generate MODEL --prompt a --dtype float8": "dtype 'float8' is unknown",
    "explore /none": "no model '/none'",
    "import /none --out new": "no model '/none'",
    "import MODEL --out HERE": "exists already",
    "export MODEL --format dense": "no output directory was given",
    "scales list /none": "no model '/none'",
    "run none.yaml": "none.yaml does not exist",
    "run RECIPE": "step 1: lowrank: kep is no setting here; did you mean keep?",
    "merge run none.yaml --out new": "none.yaml does not exist",
    "merge plan none.yaml": "none.yaml does not exist",
    "laser search MODEL --task ROWS --rho 7 --out new": "rho 7 is no number from 0 to 1",
    "laser restore /none --out new": "no model '/none'",
    "task new new.jsonl --from none.csv": "none.csv does not exist",
    "task check none.jsonl": "none.jsonl does not exist",
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
    (tmp_path / "recipe.yaml").write_text("{model: /none, out: new, steps: [{lowrank: {kep: 0.5}}]}")
    places = {"HERE": str(tmp_path), "MODEL": str(DEMO)}
    places |= {"ROWS": str(tmp_path / "rows.jsonl"), "RECIPE": str(tmp_path / "recipe.yaml")}
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


@pytest.mark.parametrize(
    ("built", "name", "said"),
    [
        ("2.9.0+cpu", "cuda", "torch 2.9.0+cpu is built for CPUs only"),
        ("2.9.0+cpu", "cuda:1", "torch 2.9.0+cpu is built for CPUs only"),
        ("2.9.0+cu128", "cuda", ""),
        ("2.9.0", "cuda:0", ""),
        ("2.9.0+cpu", "cpu", ""),
        ("2.9.0+cpu", "mps", ""),
        ("2.9.0", "cuda:", "device 'cuda:' cannot be used"),
        ("2.9.0", "gpu", "device 'gpu' cannot be used: it is none; did you mean"),
    ],
)
def test_a_torch_for_cpus_alone_says_so(
    monkeypatch: pytest.MonkeyPatch, built: str, name: str, said: str
) -> None:
    from kanna.errors import InputError
    from kanna.models import device_names

    monkeypatch.setattr(device_names, "version", lambda _: built)
    if not said:
        device_names.check_device_name(name)
        return
    with pytest.raises(InputError) as refused:
        device_names.check_device_name(name)
    assert said in refused.value.problem and "cpu" in refused.value.remedy


def test_an_adapter_is_told_to_be_merged_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kanna.cli.main import main

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is an adapter of some/base, not a model" in said and "merge it" in said


def test_examples_in_help_stand_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """No colon becomes a picture, no bracket a style, and no backslash is lost."""
    from kanna.cli.main import main

    assert main(["lowrank", "--help"]) == 0
    assert "'re:REGEX'" in capsys.readouterr().out
    assert main(["laser", "apply", "--help"]) == 0
    assert "mlp:all:energy=0.9" in capsys.readouterr().out
    assert main(["cache", "--help"]) == 0
    assert "[show|clear]" in capsys.readouterr().out
