"""`benchmarks/papers/hi_merging_bilingual.py` on tiny models: what it tells, and what it does once."""

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tuned_tasks import rows_of, split_words, write_rows

import kanna

_FILE = Path(__file__).parents[3] / "benchmarks" / "papers" / "hi_merging_bilingual.py"


@pytest.fixture
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("hi_merging_bilingual", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = [*sys.path]
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def words(models: dict[str, Path], tmp_path: Path) -> list[str]:
    """Both tasks have choices, as in the paper; calibration and test rows share no group."""
    spoken = split_words(models, tmp_path / "models")
    given = ["--base", str(spoken["base"]), "--work", str(tmp_path / "work"), "--rounds", "1"]
    given += ["--p", "1", "--s", "0.5,1", "--stages", "model"]
    draw = random.Random(0)
    for flag, name in (("--first", "a"), ("--second", "b")):
        rows = rows_of(spoken[name], spoken["base"], ord(name), 60)
        for row in rows:
            right = row.pop("answer")
            wrong = [f" t{token}" for token in draw.sample(range(3, 400), 4) if right != f" t{token}"]
            row["choices"], row["label"] = [right, *wrong[:3]], 0
        for part, some in (("calibration", rows[:30]), ("test", rows[30:])):
            file = write_rows(tmp_path / f"{name}-{part}.jsonl", some)
            given += [f"--{part}", f"{name}={file}"]
        given += [flag, f"{name}={spoken[name]}"]
    return given


def test_the_table_and_the_journal(
    benchmark: ModuleType,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark.main(words)
    lines = capsys.readouterr().out.splitlines()
    told = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]] for line in lines[2:9]}
    assert list(told) == [
        "base", "first expert", "second expert", "task arithmetic", "ties", "dare", "hi, model"
    ]  # fmt: skip
    assert told["base"][3:5] == ["51.41", "74.62"] and told["hi, model"][3:5] == ["", ""]
    file = next(word.partition("=")[2] for word in words if word.endswith("b-test.jsonl"))
    (score,) = kanna.evaluate(tmp_path / "work" / "hi-model", [file], fresh=True).scores
    assert told["hi, model"][1] == f"{100 * score.value:.2f}"
    journal = (tmp_path / "work" / "journal.jsonl").read_text().splitlines()
    assert len(journal) == 7 and all(json.loads(line) for line in journal)
    for name in ("merge", "merge_hi", "evaluate"):
        monkeypatch.setattr(kanna, name, None)  # nothing is done again
    benchmark.main(words)
    assert capsys.readouterr().out.splitlines() == lines
