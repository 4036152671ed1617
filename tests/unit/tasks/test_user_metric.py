"""The user's own metric: what it is given, what it may return, and what is said when it fails."""

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.metrics import user_metric
from kanna.tasks.metrics.user_metric import COMMAND, METRICS, metric_info, parse_user_metric
from kanna.tasks.records import Record

ROWS = [
    read_row("here", {"prompt": "Is it?", "answer": "はい", "group": "g", "cost": 3, "level": "hard"}),
    read_row("here", {"prompt": "Or not?", "answers": ["no", "nein"], "row": 99, "predicted": "cheat"}),
]
RECORDS = [
    Record(0, "Is it?", "はい", "はい\u2028!", None, {}, group="g", cost=3.0),
    Record(1, "Or not?", "no | nein", "so\nno", None, {}),
]
EXPECTED = [
    {
        "row": 0,
        "prompt": "Is it?",
        "expected": "はい",
        "predicted": "はい\u2028!",
        "group": "g",
        "cost": 3.0,
        "level": "hard",
    },
    {
        "row": 1,
        "prompt": "Or not?",
        "expected": "no | nein",
        "predicted": "so\nno",
        "group": "",
        "cost": 1.0,
    },
]


def function(folder: Path, code: str, minus: str = "") -> Any:
    path = folder / "my_metric.py"
    path.write_text(code, encoding="utf-8")
    return parse_user_metric(f"{minus}{path}:score")


def command(folder: Path, code: str, minus: str = "", *words: str) -> Any:
    path = folder / "judge it.py"
    path.write_text(code, encoding="utf-8")
    return parse_user_metric(f"{minus}{COMMAND}{shlex.join([sys.executable, str(path), *words])}")


def returns(folder: Path, value: str) -> Any:
    return function(folder, f"def score(examples):\n    return {value}\n")


def test_a_function_gets_every_example_once(tmp_path: Path) -> None:
    code = """
import json, pathlib

def score(examples):
    pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps(examples))
    return [len(one["predicted"]) / 10 for one in examples]
"""
    assert function(tmp_path, code).score(RECORDS, ROWS) == [0.4, 0.5]
    assert json.loads((tmp_path / "seen.json").read_text()) == EXPECTED


def test_a_command_gets_the_same_as_lines(tmp_path: Path) -> None:
    code = """
import pathlib, sys

raw = sys.stdin.buffer.read()
pathlib.Path(sys.argv[1]).write_bytes(raw)
for number, line in enumerate(raw.decode("utf-8").split("\\n")[:-1]):
    print(number + 0.25, end="\\n\\n")
print("said aside: é", file=sys.stderr)
"""
    metric = command(tmp_path, code, "", str(tmp_path / "seen it.jsonl"))
    assert metric.score(RECORDS, ROWS) == [0.25, 1.25]
    lines = (tmp_path / "seen it.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == EXPECTED


def test_values_that_json_does_not_know_reach_a_command_as_text(tmp_path: Path) -> None:
    code = "import json, sys\nfor line in sys.stdin: print(len(json.loads(line)['day']))\n"
    row = Row("p a", "p", "a", extra={"day": datetime.date(2020, 2, 3)})
    assert command(tmp_path, code).score(RECORDS[:1], [row]) == [10.0]


@pytest.mark.parametrize(
    "value",
    [
        "[1, 0]",
        "(True, False)",
        "(one['row'] == 0 for one in examples)",
        "__import__('numpy').array([1.0, 0.0])",
        "__import__('torch').tensor([1.0, 0.0])",
        "{1: 1.0, 0: 0.0}.values()",
        "[__import__('fractions').Fraction(1), 0]",
    ],
)
def test_whatever_holds_numbers_may_be_returned(value: str, tmp_path: Path) -> None:
    found = returns(tmp_path, value).score(RECORDS, ROWS)
    assert found == [1.0, 0.0] and all(type(one) is float for one in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1.0]", "returned 1 scores for 2 examples"),
        ("[1.0, 0.0, 1.0]", "returned 3 scores for 2 examples"),
        ("[]", "returned 0 scores for 2 examples"),
        ("[1.0, float('nan')]", "returned nan for row 2"),
        ("[float('inf'), 1.0]", "returned inf for row 1"),
        ("__import__('numpy').array([1.0, float('nan')])", "returned nan for row 2"),
        ("None", "returned None"),
        ("0.5", "returned 0.5"),
        ("7", "raised TypeError"),
        ("'10'", "returned '10'"),
        ("{'a': 1, 'b': 2}", "no list of numbers"),
        ("['good', 'bad']", "something else than numbers"),
        ("[None, 1]", "something else than numbers"),
        ("[[1, 2], [3, 4]]", "something else than numbers"),
        ("[examples[9]]", r"raised IndexError: list index out of range \(my_metric.py, line 2\)"),
        ("(1 / one['row'] for one in examples)", r"raised ZeroDivisionError.*\(my_metric.py, line 2\)"),
        ("exit(0)", "raised SystemExit"),
        ("__import__('json').loads('{')", r"raised JSONDecodeError.*\(my_metric.py, line 2\)"),
    ],
)
def test_what_a_function_may_not_do(value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        returns(tmp_path, value).score(RECORDS, ROWS)


def test_a_file_may_hold_anything_that_python_imports(tmp_path: Path) -> None:
    code = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Judge:
    most: int = 2

    def __call__(self, examples: list[dict]) -> list[float]:
        return [min(self.most, one["row"]) for one in examples]

score = Judge()
"""
    metric = function(tmp_path, code)
    metric.check()
    assert metric.score(RECORDS, ROWS) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(examples):\n    return examples[\n", "SyntaxError"),
        ("import no_such_module_here\n", r"ModuleNotFoundError.*\(my_metric.py, line 1\)"),
        ("def other(examples): ...\n", "no function 'score'"),
        ("score = 3\n", "no function 'score'"),
        ("raise SystemExit(3)\n", "raised SystemExit: 3"),
    ],
)
def test_files_that_have_no_metric_are_found_beforehand(code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        function(tmp_path, code).check()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print(1)", "returned 1 scores for 2 examples"),
        ("print('1\\n2\\n3')", "returned 3 scores for 2 examples"),
        ("print('1\\nnan')", "returned nan for row 2"),
        ("print('1\\nyes')", "something else than numbers"),
        ("print('1 2')", "something else than numbers"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n1\\n')", "something else than numbers"),
        ("import sys; print('1\\n2'); sys.exit('out of luck')", "ended with code 1: out of luck"),
        ("raise ValueError('why')", "ended with code 1: .*ValueError: why"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with code -9"),
    ],
)
def test_what_a_command_may_not_do(code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        command(tmp_path, code).score(RECORDS, ROWS)


def test_a_command_need_not_read(tmp_path: Path) -> None:
    records, rows = RECORDS[:1] * 5000, [Row("p", "p" * 500, "a")] * 5000  # more than a pipe holds
    assert command(tmp_path, "for _ in range(5000): print(1)").score(records, rows) == [1.0] * 5000


def test_a_command_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_metric, "_WAIT_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"did not end within 0.2 s"):
        command(tmp_path, "import time; time.sleep(60)").score(RECORDS, ROWS)


def test_a_leading_minus_says_that_less_is_better(tmp_path: Path) -> None:
    for make in (function, command):
        for minus in ("", "-"):
            metric = make(tmp_path, "def score(examples):\n    return [1, 2]\n", minus)
            assert metric.lower_is_better == bool(minus)
            assert not metric.source.startswith("-") and not metric.name.startswith("-")
    assert function(tmp_path, "def score(examples):\n    return [1, 2]\n", "-").score(RECORDS, ROWS) == [1, 2]


def test_names(tmp_path: Path) -> None:
    assert function(tmp_path, "").name == "my_metric.py:score"
    assert command(tmp_path, "").name == f"cmd:{Path(sys.executable).name}"
    assert parse_user_metric("greedy") is None and parse_user_metric("regex:a.py:b") is None
    for wrong, message in (
        ("missing.py:f", "does not exist"),
        ("cmd:", "names no command"),
        ("cmd:'a", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            parse_user_metric(wrong)
    with pytest.raises(InputError, match="'no-such-program-here' is not found"):
        metric = parse_user_metric("cmd:no-such-program-here -x")
        assert metric is not None
        metric.check()


def test_metrics_of_ours_say_what_they_are() -> None:
    assert metric_info("acc", "choice").binary and metric_info("acc", "choice").higher_is_better
    assert metric_info("regex:a", "answer").binary
    assert not metric_info("rougeL", "answer").binary
    for kind, metrics in METRICS.items():
        for name, info in metrics.items():
            assert metric_info(name, kind) == info
            assert info.higher_is_better == (
                name not in ("perplexity", "bits_per_byte") and "loss" not in name
            )
    for metric, kind in (("acc", "answer"), ("greedy", "choice"), ("regex:a", "choice"), ("f1", "text")):
        with pytest.raises(InputError, match=f"no metric for rows of kind {kind}"):
            metric_info(metric, kind)
    with pytest.raises(InputError, match="no regular expression"):
        metric_info("regex:(", "answer")


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    assert np.isclose(returns(tmp_path, "[__import__('numpy').float32(0.1), 1]").score(RECORDS, ROWS)[0], 0.1)
