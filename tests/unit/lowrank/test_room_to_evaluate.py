"""A model that does not fit in memory is not begun to be evaluated, nor compressed with a task for hours."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

import kanna
from kanna.errors import InputError
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.run import lowrank
from kanna.runs import room
from kanna.runs.criteria import criteria_of
from kanna.runs.opened import Opened
from kanna.tasks.options import EvalOptions


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.family("llama", tmp_path / "base")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"prompt": tiny.letters(5, i), "answer": tiny.letters(2, 99 + i)} for i in range(8)]
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))


def test_what_its_weights_take_is_counted(base: Path) -> None:
    opened = Opened.open(base)
    assert opened.bytes_in("bfloat16") * 2 == opened.bytes_in("float32") == opened.checkpoint.bytes


def test_it_is_refused_with_what_would_do(
    base: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, Opened.open(base).bytes_in("float32") - 1)
    with pytest.raises(InputError, match=r"base to be evaluated(.|\n)*--dtype bfloat16"):
        kanna.evaluate(base, task, cache=tmp_path / "cache")
    result = kanna.evaluate(base, task, EvalOptions(dtype="bfloat16"), cache=tmp_path / "cache")
    assert result.scores


def test_a_run_with_a_task_is_refused_before_it_begins(
    base: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanna.runs.runner._check_memory", lambda _: None)
    with_free(monkeypatch, Opened.open(base).bytes_in("float32") - 1)
    with pytest.raises(InputError, match="to be evaluated"):
        lowrank(
            base,
            tmp_path / "out",
            LowRankConfig(keep=0.7, method="plain"),
            criteria=criteria_of(str(task), "5pt"),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "task.jsonl"]
