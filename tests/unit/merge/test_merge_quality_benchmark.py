"""`benchmarks/merge_quality.py` on tiny models: which rows it has, and that each is made once."""

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from merge_models import weights
from tuned_tasks import rows_of, split_words, write_rows

import kanna

_FILE = Path(__file__).parents[3] / "benchmarks" / "merge_quality.py"


@pytest.fixture
def benchmark() -> Iterator[ModuleType]:
    path = [*sys.path]
    sys.path.insert(0, str(_FILE.parent))
    spec = importlib.util.spec_from_file_location("merge_quality", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["merge_quality"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["merge_quality"]


def test_every_row_is_made_once(
    benchmark: ModuleType,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoken = split_words(models, tmp_path / "models")
    words = ["--base", str(spoken["base"]), "--journal", str(tmp_path / "runs.jsonl"), "--seeds", "4"]
    words += ["--evaluations", "8", "--steps", "3", "--context", "16"]
    for number, name in enumerate("ab"):
        rows = write_rows(tmp_path / f"{name}.jsonl", rows_of(spoken[name], spoken["base"], number, 110))
        train = write_rows(tmp_path / f"{name}-train.jsonl", rows_of(spoken[name], spoken["base"], 7, 40))
        words += ["--expert", f"{name}={spoken[name]}", "--task", f"{name}={rows}"]
        words += ["--train", f"{name}={train}"]
    benchmark.main(words)
    first = capsys.readouterr().out
    told = {line.split(" | ")[0].removeprefix("| "): line for line in first.splitlines()[2:]}
    rows_there = ["base", "expert a", "expert b", *benchmark.UNTUNED, *benchmark.TUNED]
    assert sorted(told) == sorted([*rows_there, "fine-tuned on all rows, 3 steps"])
    assert told["expert a"].split(" | ")[1] != told["base"].split(" | ")[1]
    # Four merges on two tasks, besides base and experts.
    assert told["layer swapping, which and how many tuned"].split(" | ")[-2] == "12"
    benchmark.run = None  # nothing is made again
    benchmark.main(words)
    assert capsys.readouterr().out == first


class _Blocks:
    """Scores of states by how many of the first and last blocks are whose."""

    blocks = ("embeddings", "0", "1", "2", "norm and head")
    experts = ("a", "b")

    def __init__(self) -> None:
        self.seen: list[str] = []


def test_layers_are_swapped_from_both_ends(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few at first; the wanted one is b around two blocks of a."""
    ground = _Blocks()

    def score(ground: _Blocks, state: object) -> float:
        word = "".join("a" if row[0].scale else "b" for row in state.rows)  # type: ignore[attr-defined]
        ground.seen.append(word)
        return float(word == "bbaab")

    monkeypatch.setattr(benchmark, "mean_normalised", score)
    best = benchmark.swapped(ground, 100, random.Random(0))
    assert "".join("a" if row[0].scale else "b" for row in best.rows) == "bbaab"
    assert ground.seen[:6] == ["bbbbb", "aaaaa", "bbbba", "aaaab", "abbbb", "baaaa"]
    assert all(word.lstrip(word[0]).rstrip(word[0]).count(word[0]) == 0 for word in ground.seen)
    ground.seen.clear()
    benchmark.swapped(ground, 3, random.Random(0))
    assert len(ground.seen) == 3


def test_training_moves_answers_up(benchmark: ModuleType, models: dict[str, Path], tmp_path: Path) -> None:
    spoken = split_words(models, tmp_path / "models")
    rows = rows_of(spoken["a"], spoken["base"], 3, 40)
    tokens = benchmark.fine_tuned(str(spoken["base"]), rows, tmp_path / "out", 20, 16, 5e-3, 0)
    # Four words of a prompt and one of an answer; 40 rows are two batches of 16 and one of 8, shuffled.
    assert tokens == 5 * (6 * 40 + 2 * 16) or tokens == 5 * (6 * 40 + 16 + 8)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    places = (spoken["base"], tmp_path / "out")
    before, after = (kanna.evaluate(place, [file], fresh=True).scores[0].value for place in places)
    assert after > before
    dtypes = [{name: value.dtype for name, value in weights(place).items()} for place in places]
    assert dtypes[0] == dtypes[1]
