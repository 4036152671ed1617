"""`benchmarks/papers/basel_gsm8k.py`, on a tiny model: what it asks, what it tells, and what it does once."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kanna

_FILE = Path(__file__).parents[3] / "benchmarks" / "papers" / "basel_gsm8k.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("basel_gsm8k", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["basel_gsm8k"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["basel_gsm8k"]


@pytest.fixture
def words(bases: Callable[[str], Path], rows: Path, tmp_path: Path) -> list[str]:
    """A short run on a model with an output head of its own; questions are not those that are learnt."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    asked = [{**row, "answer": f"{place + 7}"} for place, row in enumerate(lines[32:36])]
    for name, some in (("train", lines[:32]), ("test", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    given = {
        "model": bases("llama"),
        "train": tmp_path / "train.jsonl",
        "test": tmp_path / "test.jsonl",
        "work": tmp_path / "work",
        "times": 2,
        "questions": 3,
        "epochs": "1,1,1",
        "rows": 8,
        "events": 2,
        "extra-rank": 1,
        "context": 32,
        "new-tokens": 4,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_what_was_killed_is_taken_up_and_what_is_done_is_not_done_again(
    benchmark: ModuleType,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []
    real = kanna.basel

    def basel(model: Any, out: Any, config: Any, **rest: Any) -> Any:
        asked.append((config.preset, config.rows, config.prune_events, rest["resume"]))
        steps = []

        def stopping(stage: str, done: int, total: int) -> None:
            steps.append(stage)
            if len(asked) == 2 and stage.startswith("part 2"):
                raise KeyboardInterrupt

        return real(model, out, config, **{**rest, "progress": stopping})

    monkeypatch.setattr(benchmark.kanna, "basel", basel)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(words)
    journal = (tmp_path / "work" / "journal.jsonl").read_text().splitlines()
    assert len(journal) == 2  # the model as it is, and the paper's settings
    benchmark.main(words)
    assert asked == [("paper", 8, 2, False), (None, 8, 2, False), (None, 8, 2, True)]
    benchmark.main(words)
    assert len(asked) == 3
    (first, second) = capsys.readouterr().out.split("| settings")[1:]
    assert first == second
    lines = [line.split(" | ") for line in first.splitlines()[2:5]]
    assert [line[0].removeprefix("| ") for line in lines] == ["as it is", "paper", "defaults"]
    for line, name in zip(lines[1:], ("paper-2", "defaults-2"), strict=True):
        made = json.loads((tmp_path / "work" / name / "kanna-basel.json").read_text())
        assert line[1] == f"{1 / made['keep_selected']:.2f}x" and abs(made["keep_selected"] - 0.5) < 0.02
        assert "lm_head" in [matrix["role"] for matrix in made["matrices"]]
    assert all(line[3].endswith("% of 3") for line in lines)
    assert lines[1][4:] == ["61.5 at 2.05x", "61 at 2.1x |"]
    assert "digitised" in first


def test_questions_are_those_of_the_file(benchmark: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "2 and 3?", "answer": "2 + 3\\n#### 5"}\n{"prompt": "Say 1.", "answer": " 1"}\n'
    )
    assert list(benchmark.rows_of(path)) == [
        {"prompt": "Question: 2 and 3?\nAnswer:", "answer": " 2 + 3\n#### 5"},
        {"prompt": "Say 1.", "answer": " 1"},
    ]
