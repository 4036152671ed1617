"""The fixture that watches the process, and every public call and verb under its eye."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kanna
import process_state
from kanna.cli.main import main
from kanna.measure.bench import BenchOptions
from kanna.tasks.scorers import harness

sys.path.insert(0, str(Path(__file__).parent / "cli"))

from tiny_model import TEXT, WORDS, save_model

TESTS = Path(process_state.__file__).parent
ROW = {"prompt": "w1 w2", "choices": ["w3", "w4"], "label": 0}

CHANGES = {
    "torch threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
    "torch default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "torch gradients": "import torch; torch.set_grad_enabled(False)",
    "torch seed": "import torch; torch.manual_seed(0)",
    "random": "import random; random.seed(0)",
    "numpy.random": "import numpy; numpy.random.seed(0)",
    "environment: NEW": "import os; os.environ['NEW'] = '1'",
    "environment: OLD": "import os; del os.environ['OLD']",
    "working directory": "import os; os.chdir('/')",
    "handlers of logger root": "import logging; logging.getLogger().addHandler(logging.NullHandler())",
    "handlers of logger kanna": "import logging as x; x.getLogger('kanna').addHandler(x.NullHandler())",
    "level of logger root": "import logging; logging.getLogger().setLevel(logging.DEBUG)",
    "level of logger kanna": "import logging; logging.getLogger('kanna').setLevel(logging.DEBUG)",
}
HEADER = "import numpy, pytest, torch\n"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of tests that each change one thing, with the conftest of this suite beside them."""
    root = tmp_path_factory.mktemp("suite")
    for name in ("conftest.py", "process_state.py"):
        shutil.copy(TESTS / name, root)
    tests = [HEADER]
    for number, code in enumerate(CHANGES.values()):
        tests.append(f"def test_change_{number}():\n    {code}\n")
        tests.append(f"def test_after_{number}():\n    pass\n")
    module = "@pytest.fixture(scope='module')\ndef wide():\n    torch.set_num_threads(7)\n"
    tests.append(f"{module}def test_wide(wide):\n    pass\n")
    tests.append("def test_draws():\n    torch.nn.Linear(2, 2)\n")
    (root / "test_changes.py").write_text("\n".join(tests))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-rA",
        str(root),
    ]
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=root, env=given | {"OLD": "1"}, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", CHANGES)
def test_a_test_that_changes_it_fails_and_the_next_does_not(verdicts: str, name: str) -> None:
    number = list(CHANGES).index(name)
    report = verdicts.partition(f"ERROR at teardown of test_change_{number} ")[2].partition("\n____")[0]
    assert f"\n  {name}" in "\n".join(f"\n  {line.removeprefix('E').strip()}" for line in report.splitlines())
    assert f"PASSED test_changes.py::test_after_{number}\n" in verdicts
    assert f"ERROR test_changes.py::test_after_{number} " not in verdicts


def test_a_fixture_of_many_tests_is_watched_too_and_drawing_is_allowed(verdicts: str) -> None:
    assert "ERROR test_changes.py::test_wide " in verdicts
    assert "PASSED test_changes.py::test_draws\n" in verdicts and "::test_draws -" not in verdicts


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        base = save_model(tmp_path / "base")
    (tmp_path / "text.txt").write_text(TEXT)
    draw = random.Random(0)
    rows = [
        {**ROW, "prompt": " ".join(draw.sample(WORDS, 3)), "label": draw.randrange(2)} for _ in range(160)
    ]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"lowrank": {"keep": 0.7, "align": 1, "method": "plain"}}
    recipe = {"model": str(base), "out": str(tmp_path / "out"), "steps": [step]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    names = {"base": "base", "text": "text.txt", "task": "task.jsonl", "recipe": "recipe.yaml", "out": "out"}
    return {name: tmp_path / file for name, file in names.items()}


PLAIN = ("--keep", "0.7", "--method", "plain", "--align", "1")
SMALL: dict[str, Any] = {"contexts": (8,), "new_tokens": 3, "repeats": 2, "memory": False}
QUICK = ("--context", "8", "--new-tokens", "3", "--repeats", "2")
VERBS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "{base}"),
    "lowrank": ("lowrank", "{base}", *PLAIN, "--out", "{out}"),
    "anchored": ("lowrank", "{base}", "--keep", "0.8", "--calibration", "{text}", "--out", "{out}"),
    "refined": (
        "lowrank", "{base}", *PLAIN, "--calibration", "{text}", "--refine", "2", "--out", "{out}"
    ),
    "laser apply": ("laser", "apply", "{base}", "--edit", "up:1:0.9", "--out", "{out}"),
    "laser analyze": ("laser", "analyze", "{base}", "--task", "{task}", "--edit", "up:1:0.9"),
    "laser search": ("laser", "search", "{base}", "--task", "{task}", "--rho", "0.5", "--out", "{out}"),
    "eval": ("eval", "{base}", "--task", "{task}", "--text", "{text}"),
    "compare": ("compare", "{base}", "{base}", "--task", "{task}"),
    "bench": ("bench", "{base}", *QUICK),
    "bench of streams": ("bench", "{base}", *QUICK, "--no-memory", "--concurrency", "2"),
    "generate": ("generate", "{base}", "--prompt", "w1 w2"),
    "task check": ("task", "check", "{task}"),
    "run": ("run", "{recipe}"),
    "cache": ("cache",),
    "a model that is not there": ("inspect", "{base}/nothing"),
}  # fmt: skip


EXITS = {"a model that is not there": 2}


@pytest.mark.parametrize("loud", ["-q", "-v"])
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_run_in_process_gives_all_back(
    name: str, loud: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(**files) for word in VERBS[name]]
    threads = torch.get_num_threads() + 1
    talk = talkativeness()
    with process_state.unchanged():
        code = main([*words, loud, "--threads", str(threads), "--log-file", str(files["base"] / "log")])
    assert talkativeness() == talk
    assert code == EXITS.get(name, 0), capsys.readouterr().err


def talkativeness() -> tuple[object, ...]:
    """How much transformers and huggingface_hub say."""
    import huggingface_hub.utils
    import transformers.utils.logging as said

    return (
        said.get_verbosity(),
        said.is_progress_bar_enabled(),
        huggingface_hub.utils.are_progress_bars_disabled(),
        logging.getLogger("transformers").handlers[:],
    )


def test_an_interrupted_verb_gives_all_back(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import kanna.runs.inspect as module

    computed = []

    def interrupt(*_: object, **__: object) -> None:
        computed.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "inspect", interrupt)
    threads = torch.get_num_threads() + 1
    with process_state.unchanged():
        assert main(["inspect", str(files["base"]), "--threads", str(threads)]) == 130
    assert computed == [threads]


def criteria(at: dict[str, Path]) -> kanna.Criteria:
    return kanna.criteria_of([str(at["task"])], "1pt")


CALLS: dict[str, Callable[[dict[str, Path]], Any]] = {
    "load": lambda at: kanna.load(at["base"]),
    "inspect": lambda at: kanna.inspect(at["base"], spectra=True),
    "evaluate": lambda at: kanna.evaluate(at["base"], [at["task"]]),
    "evaluate_text": lambda at: kanna.evaluate_text(at["base"], at["text"]),
    "compare": lambda at: kanna.compare(at["base"], at["base"], criteria(at)),
    "bench": lambda at: kanna.bench(at["base"], options=BenchOptions(**SMALL)),
    "generate": lambda at: kanna.generate(at["base"], "w1 w2"),
    "lowrank": lambda at: kanna.lowrank(at["base"], at["out"], kanna.LowRankConfig(keep=0.7, method="plain")),
    "laser_apply": lambda at: kanna.laser_apply(
        at["base"], at["out"], kanna.LaserConfig(edits=("up:1:0.9",))
    ),
    "laser_search": lambda at: kanna.laser_search(at["base"], at["task"], at["out"]),
    "laser_analyze": lambda at: kanna.laser_analyze(at["base"], at["task"], ["up:1:0.9"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_all_back(name: str, files: dict[str, Path]) -> None:
    talk = talkativeness()
    with process_state.unchanged():
        CALLS[name](files)
    assert talkativeness() == talk


def test_what_lm_eval_does_is_undone() -> None:
    with process_state.unchanged():
        harness._library()
        with harness._seeds_kept():
            random.seed(1)
            np.random.seed(1)
            torch.manual_seed(1)
