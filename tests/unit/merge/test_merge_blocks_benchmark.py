"""`benchmarks/merge_blocks.py` on tiny models: all layers are told, and later ones run less."""

import importlib.util
from pathlib import Path

from tuned_tasks import split_words, tasks_of

from kanna import EvalOptions

_FILE = Path(__file__).parents[3] / "benchmarks" / "merge_blocks.py"


def test_later_layers_run_less(models: dict[str, Path], tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("merge_blocks", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    spoken = split_words(models, tmp_path)
    rows = tasks_of(spoken, tmp_path)["a"]
    found = list(module.measured(str(spoken["base"]), str(spoken["a"]), rows, 0.5, EvalOptions(), 1))
    assert [name for name, _, _ in found] == ["all", "0", "1"]
    assert all(seconds > 0 for _, seconds, _ in found)
    assert 1.0 == found[0][2] >= found[1][2] > found[2][2] > 0
