"""What cannot be done ends with 2, one message that says what to do, and nothing written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.checkpoint import writer
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.basel.config import BaselConfig
from kanna.runs.source import Source

Base = Callable[[str], Path]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`kanna basel` as users call it; what it said."""

    def call(model: Path, data: Path, *words: str, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        before = sorted(tmp_path.rglob("*"))
        given = ["--keep", "0.5"] if not {"--keep", "--start"} & set(words) else []
        said = ["basel", str(model), "--data", str(data), "--out", str(out), "--quiet", *given, *words]
        assert main(said) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("error:") == 1 and "Traceback" not in printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return " ".join(printed.err.split())

    return call


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(count: int, length: int = 6) -> list[dict[str, Any]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        {"prompt": (letters[i % 26] + letters[i // 26] + letters * 4)[:length], "answer": "q"}
        for i in range(count)
    ]


def test_the_least_that_can_be_kept_is_named(bases: Base, rows: Path, refused: Callable[..., str]) -> None:
    base = bases("llama")
    said = refused(base, rows, "--keep", "0.01", "--extra-rank", "1")
    (least,) = re.findall(r"--keep ([\d.]+) or more", said)

    def planned(keep: float) -> None:
        kanna.basel(base, None, BaselConfig(data=rows, keep=keep, extra_rank=1, rows=4), dry_run=True)

    planned(float(least))
    with pytest.raises(InputError, match=f"--keep {least} or more"):
        planned(float(least) - 0.002)


def test_rows_that_cannot_be_learnt(bases: Base, tmp_path: Path, refused: Callable[..., str]) -> None:
    base, path = bases("llama"), tmp_path / "data.jsonl"
    said = refused(base, write(path, asked(15)))
    assert "15 rows; at least 16" in said and "give more rows" in said
    said = refused(base, write(path, [*asked(20), {"prompt": "abc", "answer": " "}]))
    assert "line 21: an answer is empty" in said
    said = refused(base, write(path, [*asked(20), {"prompt": "abc"}]))
    assert "line 21" in said and "answer" in said
    said = refused(base, write(path, asked(20, length=40)), "--context", "16")
    assert "every one of the" in said and "context of 16 tokens" in said and "raise --context" in said
    said = refused(base, write(path, [*asked(20), {"prompt": "abc", "answer": "q" * 40}]), "--context", "16")
    assert "row 21: an answer has 40 tokens" in said and "shorten it" in said


def test_prompts_that_lose_their_beginning_are_counted(bases: Base, tmp_path: Path) -> None:
    """Of those that are learnt; what is held out is none of them."""
    data = write(tmp_path / "data.jsonl", [*asked(20), *asked(7, length=40)])
    held = write(tmp_path / "held.jsonl", asked(30)[20:])
    config = BaselConfig(data=data, keep=0.5, context=16, validation=held, rows=4)
    plan = kanna.basel(bases("llama"), None, config, dry_run=True).plan
    assert plan.to_dict()["rows_cut"] == 7
    assert "7 prompts lose their beginning to fit the context" in plan.notes


def test_rows_that_are_asked_too(
    bases: Base, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    task = write(tmp_path / "task.jsonl", [*asked(5), *lines[3:6]])
    said = refused(bases("llama"), rows, "--task", str(task), "--max-drop", "50pt")
    assert "3 of the 8 rows of task.jsonl are in" in said and repr(lines[3]["prompt"]) in said
    assert "row 4" in said and "--allow-overlap" in said


def test_rows_that_are_learnt_are_not_those_of_which_the_loss_is_told(
    bases: Base, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Or the best state would be that which knows the rows by heart, and nothing would seem forgotten."""
    base, lines = bases("llama"), [json.loads(line) for line in rows.read_text().splitlines()]
    held = write(tmp_path / "held.jsonl", [*asked(5), *lines[3:6]])
    said = refused(base, rows, "--validation", str(held))
    assert "3 of the 8 rows of" in said and "held.jsonl" in said and "in row 4:" in said
    assert repr(lines[3]["prompt"]) in said and "--allow-overlap" in said
    replay = write(tmp_path / "replay.jsonl", [{"text": "abcabc"}, {"text": "bcdbcd"}])
    text = write(tmp_path / "text.jsonl", [{"text": "fedfed"}, {"text": "bcdbcd"}])
    said = refused(base, rows, "--replay", str(replay), "--text", str(text))
    assert "1 of the 2 rows of" in said and "text.jsonl" in said and "in row 2: 'bcdbcd'" in said
    config = BaselConfig(data=rows, validation=held, replay=replay, text=text, keep=0.5, rows=4)
    with pytest.raises(InputError, match="not to be learnt"):
        kanna.basel(base, None, config, dry_run=True)
    kanna.basel(base, None, config.model_copy(update={"allow_overlap": True}), dry_run=True)


def test_models_that_are_no_dense_ones(
    bases: Base, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    base = bases("llama")
    low = tmp_path / "low"
    kanna.lowrank(base, low, kanna.LowRankConfig(keep=0.6, method="plain", align=1))
    said = refused(low, rows)
    assert "compressed" in said and "start from the model before" in said
    quantised = tmp_path / "quantised"
    shutil.copytree(base, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(config))
    said = refused(quantised, rows)
    assert "gptq" in said and ("unquantised" in said or "not quantised" in said or "before" in said)


def test_a_selection_of_nothing(bases: Base, rows: Path, refused: Callable[..., str]) -> None:
    assert "layer" in refused(bases("llama"), rows, "--select", "down@99")
    assert "fc_in" in refused(bases("llama"), rows, "--select", "fc_in")
    assert "names look like" in refused(bases("llama"), rows, "--select", "re:nothing")


def test_an_output_that_exists_and_a_disk_that_is_full(
    bases: Base, rows: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    assert "exists already" in refused(bases("llama"), rows, out=there)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    said = refused(bases("llama"), rows, out=tmp_path / "new")
    assert "space" in said and "--out" in said


def test_a_start_of_another_model(
    bases: Base, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other = tmp_path / "other"
    kanna.lowrank(bases("qwen2"), other, kanna.LowRankConfig(keep=0.6, method="plain", align=1))
    said = refused(bases("llama"), rows, "--start", str(other))
    assert all(Source.open(bases(name)).hash[:16] in said for name in ("llama", "qwen2"))


def test_training_that_diverges(
    bases: Base, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is known only when there is a folder of unfinished work; the output is not there."""
    out = tmp_path / "out"
    words = ["--keep", "0.5", "--rate", "1e30", "--rows", "8", "--out", str(out), "--quiet"]
    assert main(["basel", str(bases("llama")), "--data", str(rows), *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "training diverged: a loss" in said and "give a lower rate" in said and said.count("error:") == 1
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] in ([], ["out.kanna-work"])
