"""How often models and tasks are read: once each for whatever needs them."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from counting import Counts, counted
from tiny_model import TEXT, WORDS

from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.runs.compare import Comparison, compare, judge
from kanna.runs.criteria import criteria_of
from kanna.runs.evaluations import evaluate
from kanna.runs.opened import Opened
from kanna.tasks.options import EvalOptions


@pytest.fixture
def tasks(tmp_path: Path) -> list[Path]:
    """Questions and a text."""
    lines = [
        {
            "prompt": " ".join(WORDS[(7 * i + j) % 90] for j in range(5)),
            "choices": [f" {WORDS[(11 * i + k) % 90]}" for k in range(3)],
            "label": i % 3,
        }
        for i in range(12)
    ]
    questions, text = tmp_path / "questions.jsonl", tmp_path / "read.txt"
    questions.write_text("\n".join(map(json.dumps, lines)))
    text.write_text(TEXT)
    return [questions, text]


def asked(base: Path, model: Path, tasks: list[Path], **how: bool) -> tuple[Comparison, Counts]:
    with counted(*tasks) as counts:
        found = compare(base, model, criteria_of([str(task) for task in tasks], "50pt"), **how)
    return found, counts


def check_once(counts: Counts, *models: Path, loads: int = 1) -> None:
    for model in models:
        one = counts.of(model)
        assert (one.opens, one.hashes, one.loads) == (1, 1, loads)
        assert one.readings <= 1 + loads
    assert set(counts.files.values()) == {1}


@pytest.mark.parametrize("how", [{}, {"blame": True}, {"distribution": False}], ids=str)
def test_a_comparison_reads_each_model_twice_and_each_task_once(base, small, tasks, how):
    found, counts = asked(base, small, tasks, **how)
    check_once(counts, base, small)
    assert (found.divergence is None) == ("distribution" in how)
    again, counts = asked(base, small, tasks, **how)
    check_once(counts, base, small, loads=int("distribution" not in how))
    assert again.to_dict() == found.to_dict()


def test_the_base_goes_where_both_do_not_fit(base, small, tasks, monkeypatch):
    free, counts = asked(base, small, tasks)
    monkeypatch.setenv("KANNA_CACHE", str(tasks[0].parent / "other-cache"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    monkeypatch.setattr("kanna.runs.opened.check_memory", lambda *_: None)  # one of them does
    tight, counts = asked(base, small, tasks)
    check_once(counts, base, small)
    assert tight.divergence is None and any("left out" in note for note in tight.notes)
    assert [one.to_dict() for one in tight.tasks] == [one.to_dict() for one in free.tasks]


def test_an_evaluation_reads_its_model_twice_and_from_then_on_once(base, small, tasks):
    for loads in (1, 0):
        with counted(*tasks) as counts:
            evaluate(small, tasks)
        check_once(counts, small, loads=loads)


def test_a_run_judges_with_what_is_open(base, small, tasks):
    criteria, options = criteria_of([str(task) for task in tasks], "50pt"), EvalOptions()
    plain = judge(base, small, "small", criteria, options)
    with counted(*tasks) as counts:
        source = Opened.open(base)
        prepared = source.prepared_for(criteria, options)
        assert source.base_hash
        source.loaded(options)
        written = load(small, dtype=torch.float32, verify=False)[0]
        found = judge(source, small, "small", criteria, options, prepared=prepared, loaded=written)
    assert found.to_dict() == plain.to_dict()
    assert counts.of(base).hashes == 1 and counts.of(base).readings <= 2
    assert counts.of(small).hashes == 1 and counts.of(small).loads == 1
    assert set(counts.files.values()) == {1}


def test_a_changed_file_is_found_by_the_same_pass(small, base, tasks):
    file = small / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for run in (lambda: evaluate(small, tasks), lambda: asked(base, small, tasks)):
        with pytest.raises(InputError, match=r"model\.safetensors has changed"):
            run()


def test_lowrank_with_a_task(kanna, base, tasks, text, tmp_path):
    how = ("--keep", "0.6", "--align", 1, "--calibration", text, "--context", 32, "--batch", 2)
    words = [word for task in tasks for word in ("--task", task)]
    with counted(*tasks) as counts:
        ran = kanna("lowrank", base, *how, *words, "--max-drop", "99pt", "--out", tmp_path / "out", "-q")
    one = counts.of(base)
    assert ran.code in (0, 3)
    # The hash, evaluation, and three walks through the blocks: forward, back, and the one that replaces.
    assert one.hashes == 1 and one.opens == 1 and one.readings <= 5.5
    assert set(counts.files.values()) == {1}
