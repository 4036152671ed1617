"""Bad task files, requests and metrics of `kanna eval`: code 2, the place and the remedy, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import WORDS

import process_state

CHOICE = {"prompt": "w1 w2 w3", "choices": [" w4", " w5"], "label": 0}
ANSWER = {"prompt": "w1 w2 w3", "answer": " w4"}
TEXT = {"text": " ".join(WORDS[:30])}


@pytest.fixture
def refused(kanna, unchanged, tmp_path) -> Callable[..., str]:
    """Run a command that must be refused: code 2, all of `named` on stderr with a remedy, nothing written."""

    def check(*words: object, named: str | tuple[str, ...]) -> str:
        before = unchanged(tmp_path)
        ran = kanna(*words, "-q")
        assert ran.code == 2, (ran.code, ran.err)
        for one in [named] if isinstance(named, str) else named:
            assert one in ran.err
        assert ran.out == "" and "Traceback" not in ran.err
        assert ran.err.count("kanna: error:") == 1 and ran.err.count("\n  help: ") == 1
        assert unchanged(tmp_path) == before
        return ran.err

    return check


@pytest.fixture
def task(tmp_path) -> Callable[..., Path]:
    """Write rows, or lines as they are."""

    def write(*rows: dict[str, Any] | str, name: str = "task.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "w1"', ("line 2", "not JSON", '{"prompt": ..., "answer": ...}')),
        ('["w1", "w2"]', ("line 2", "expected an object, found list")),
        ('{"question": "w1"}', ("line 2", "found the keys ['question']")),
        (
            '{"prompt": "w1", "choices": ["w2", "w3"], "label": 2}',
            ("line 2", "label 2 of 2 choices", "0 to 1"),
        ),
        (
            '{"prompt": "w1", "choices": ["w2", "w3"], "label": "w4"}',
            ("line 2", "neither a number nor one of"),
        ),
        ('{"prompt": "w1", "choices": ["w2", "w2"], "label": 0}', ("line 2", "hold one twice")),
        ('{"prompt": "w1", "answer": ""}', ("line 2", "an answer is empty", "fill it in, or remove the row")),
        ('{"prompt": "", "answer": "w1"}', ("line 2", "prompt is empty")),
        (
            '{"prompt": "w1", "answer": "w2"}',
            ("row 1 of the task is of kind choice and row 2 of kind answer",),
        ),
    ],
)
def test_rows(refused, shared_base, task, tmp_path, line, named):
    path = task(CHOICE, line)
    refused("eval", shared_base, "--task", path, "--out", tmp_path / "out", named=named)
    refused("compare", shared_base, shared_base, "--task", path, named=named)
    if "line 2" in named:
        refused("task", "split", path, "--out", tmp_path / "out", named=named)


def test_task_files(refused, shared_base, task, tmp_path):
    path = task(ANSWER)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "latin.csv").write_bytes("prompt,answer\ncafé,w1\n".encode("latin-1"))
    for words, named in [
        (("--task", tmp_path / "nowhere.jsonl"), ("nowhere.jsonl does not exist",)),
        (("--task", tmp_path / "folder"), ("folder cannot be read: Is a directory",)),
        (("--task", tmp_path / "empty.jsonl"), ("empty.jsonl is empty",)),
        (("--task", tmp_path / "book.xlsx"), ("is a spreadsheet", "CSV UTF-8")),
        (("--task", tmp_path / "latin.csv"), ("line 2 is not UTF-8", "iconv")),
        (("--task", path, "--task", path), ("given twice",)),
        (("--task", path, "--task", tmp_path / "folder" / ".." / "task.jsonl"), ("given twice",)),
        ((), ("nothing to evaluate on", "--task FILE")),
    ]:
        refused("eval", shared_base, *words, named=named)
    for words in (("check", tmp_path / "nowhere.csv"), ("check", tmp_path / "folder")):
        refused("task", *words, named=words[1].name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--context", 65), ("--context 65 is more than the model's 64 positions", "lower it")),
        (
            ("--metric", "acc"),
            ("'acc' is no metric for rows of kind answer", "known: greedy", "file.py:function"),
        ),
        (("--metric", "regex:("), ("regex",)),
        (("--metric", "nonsense.txt:f"), ("is no metric",)),
        (("--metric", "missing.py:f"), ("missing.py does not exist",)),
        (("--metric", "cmd:"), ("names no command",)),
        (("--metric", "cmd:no-such-program-here -x"), ("no-such-program-here",)),
        (
            ("--metric", "contains", "--max-new-tokens", 64),
            ("leave no room for a prompt", "--max-new-tokens"),
        ),
        (("--chat",), ("no chat template", "leave out --chat")),
        (("--costs", "missing.yaml"), ("missing.yaml does not exist",)),
        (("--dtype", "int3"), ("int3",)),
        (("--device", "nowhere"), ("nowhere",)),
    ],
)
def test_requests(refused, shared_base, task, words, named):
    refused("eval", shared_base, "--task", task(ANSWER), *words, named=named)


@pytest.mark.parametrize("option", ["--limit", "--context", "--max-new-tokens", "--batch-tokens"])
def test_numbers_below_one(kanna, shared_base, task, option):
    ran = kanna("eval", shared_base, "--task", task(ANSWER), option, 0)
    assert ran.code == 2 and option in ran.err and "Traceback" not in ran.err


@pytest.fixture(scope="module")
def manager():
    """lm_eval changes the environment when it is imported."""
    with process_state.given_back():
        return pytest.importorskip("lm_eval.tasks").TaskManager


def test_tasks_of_lm_eval(refused, manager, shared_base, task, tmp_path, monkeypatch):
    import kanna.runs.opened as opened
    import kanna.tasks.scorers.harness as harness

    lines = ("task: tiny_mails", "dataset_path: json", "output_type: multiple_choice")
    (tmp_path / "tiny.yaml").write_text("\n".join(lines))
    # The whole index of lm_eval takes it many seconds.
    monkeypatch.setattr(
        harness, "_index", lambda: manager(include_path=str(tmp_path), include_defaults=False)
    )
    monkeypatch.setattr(opened, "load_weights", None)  # it is said before the model is loaded
    words = ("eval", shared_base, "--task", task(ANSWER), "--task")
    refused(*words, "lm_eval:tiny_mail", named=("lm_eval knows no task 'tiny_mail'", "near it: tiny_mails"))
    refused(*words, "lm_eval:tiny_mails", "--task", "lm_eval:tiny_mails", named="given twice")


def test_what_cannot_work_is_said_before_the_model_is_loaded(
    refused, shared_base, task, tmp_path, monkeypatch
):
    import kanna.runs.opened as module

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module, "load_weights", load)
    metric = tmp_path / "metric.py"
    metric.write_text("def f(examples):\n    return [1.0 for _ in examples]\n\nconstant = 5\n")
    path = task(ANSWER)
    refused("eval", shared_base, "--task", path, "--metric", f"{metric}:g", named="no function 'g'")
    refused("eval", shared_base, "--task", path, "--metric", f"{metric}:constant", named="no function")
    refused("eval", shared_base, "--task", path, "--metric", "cmd:no-such-program", named="no-such-program")
    metric.write_text("def f(examples:\n")
    refused(
        "eval", shared_base, "--task", path, "--metric", f"{metric}:f", named=("SyntaxError", "metric.py")
    )


METRICS = [
    ("def f(examples):\n    return [1 / 0]", ("f in", "raised ZeroDivisionError", "line 2")),
    ("def f(examples):\n    for _ in examples:\n        yield {}['a']", ("raised KeyError", "line 3")),
    ("def f():\n    return []", ("raised TypeError",)),
    ("import sys\n\ndef f(examples):\n    sys.exit(0)", ("raised SystemExit", "line 4")),
    (
        "def f(examples):\n    return [1.0]",
        ("returned 1 scores for 3 examples", "one finite number for each"),
    ),
    ("def f(examples):\n    return []", ("returned 0 scores for 3 examples",)),
    ("def f(examples):\n    return [1.0, float('nan'), 0.0]", ("returned nan for row 2",)),
    ("def f(examples):\n    return [float('inf')] * 3", ("returned inf for row 1",)),
    ("def f(examples):\n    return None", ("returned None",)),
    ("def f(examples):\n    return 1.0", ("returned 1.0",)),
    ("def f(examples):\n    return '111'", ("returned '111'",)),
    ("def f(examples):\n    return ['a', 'b', 'c']", ("something else than numbers",)),
    ("raise RuntimeError('no licence')\n", ("raised RuntimeError: no licence", "line 1")),
    ("import not_installed_anywhere\n", ("raised ModuleNotFoundError", "not_installed_anywhere")),
]


@pytest.mark.parametrize(("code", "named"), METRICS, ids=[str(i) for i in range(len(METRICS))])
def test_functions_of_the_user(refused, shared_base, task, tmp_path, code, named):
    metric = tmp_path / "metric.py"
    metric.write_text(code)
    path = task(ANSWER, {**ANSWER, "prompt": "w5"}, {**ANSWER, "prompt": "w6"})
    words = ("--metric", f"{metric}:f", "--out", tmp_path / "out")
    refused("eval", shared_base, "--task", path, *words, named=named)


PROGRAMS = [
    ("import sys; sys.exit('no licence')", ("ended with code 1", "no licence")),
    ("print(1.0)", ("returned 1 scores for 2 examples",)),
    ("print('nan'); print(1)", ("returned nan for row 1",)),
    ("print('good'); print('bad')", ("something else than numbers",)),
    ("import sys; sys.stdout.buffer.write(bytes([255, 10, 255, 10]))", ("something else than numbers",)),
]


@pytest.mark.parametrize(("code", "named"), PROGRAMS, ids=[str(i) for i in range(len(PROGRAMS))])
def test_commands_of_the_user(refused, shared_base, task, tmp_path, code, named):
    import sys

    (tmp_path / "metric.py").write_text(code)
    path = task(CHOICE, {**CHOICE, "prompt": "w5"})
    metric = f"cmd:{sys.executable} {tmp_path / 'metric.py'}"
    refused("eval", shared_base, "--task", path, "--metric", metric, named=named)


def test_a_command_that_does_not_end(refused, shared_base, task, monkeypatch):
    import kanna.tasks.metrics.user_metric as module

    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.2)
    named = ("did not end within 0.2 s", "sleep")
    refused("eval", shared_base, "--task", task(CHOICE), "--metric", "cmd:sleep 60", named=named)


def test_what_a_metric_prints_does_not_mix_with_the_result(kanna, shared_base, task, tmp_path):
    metric = tmp_path / "metric.py"
    metric.write_text(
        "from __future__ import annotations\n\nimport dataclasses\n\n\n@dataclasses.dataclass\n"
        "class Score:\n    value: float\n\n\n"
        "def f(examples):\n    print('working')\n    return (Score(1.0).value for _ in examples)\n"
    )
    ran = kanna("eval", shared_base, "--task", task(CHOICE), "--metric", f"{metric}:f", "--json")
    assert ran.code == 0 and ran.json["tasks"][0]["value"] == 1.0
    assert "working" in ran.err


def long_rows(shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The second and the fourth do not fit into 16 tokens."""
    return [{**shape, "prompt": " ".join(WORDS[i : i + count])} for i, count in enumerate((4, 40, 5, 17))]


@pytest.mark.parametrize(
    ("shape", "metric", "cut"), [(CHOICE, "acc", 2), (ANSWER, "greedy", 2), (ANSWER, "contains", 2)]
)
def test_prompts_longer_than_the_context(kanna, refused, shared_base, task, shape, metric, cut):
    path = task(*long_rows(shape))
    words = ("eval", shared_base, "--task", path, "--context", 16, "--metric", metric)
    ran = kanna(*words)
    assert ran.code == 0, ran.err
    assert f"Note: {path.name}: {cut} prompts were longer than the context and cut from the left" in ran.out
    err = refused(*words, "--refuse-long", named=("task.jsonl", "row 2", "context of 16", "--refuse-long"))
    assert "shorten it" in err


def test_a_cut_prompt_is_scored_as_its_end(kanna, shared_base, task):
    prompt = " ".join(WORDS[:40])
    end = " ".join(WORDS[40 - 16 : 40])
    found = []
    for some in (prompt, end):
        path = task({**CHOICE, "prompt": some})
        ran = kanna("eval", shared_base, "--task", path, "--context", 16, "--json").json["tasks"][0]
        found.append(ran["records"][0]["values"]["log_loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_an_answer_longer_than_the_context(refused, shared_base, task):
    path = task(ANSWER, {"prompt": "w1", "answer": " ".join(WORDS[:70])})
    refused("eval", shared_base, "--task", path, named=("task.jsonl", "row 2", "an answer has 70 tokens"))


def test_a_task_of_one_class(kanna, shared_base, task):
    path = task(*({**CHOICE, "prompt": f"w{i}"} for i in range(5)))
    ran = kanna("eval", shared_base, "--task", path)
    assert ran.code == 0 and "100.00 %" in ran.out
    assert f"Note: {path.name}: 'w4' is right in every row" in ran.out
    checked = kanna("task", "check", path)
    assert checked.code == 0 and "warning: one class: 'w4' is right in every row" in checked.out


def test_duplicate_rows(kanna, shared_base, task):
    path = task(CHOICE, {**CHOICE, "prompt": "w9"}, CHOICE)
    assert kanna("eval", shared_base, "--task", path).code == 0
    ran = kanna("task", "check", path)
    assert ran.code == 0 and "duplicates: 1 row repeats the prompt of another (row 3 like 1)" in ran.out


def test_task_check_exits_2_and_names_every_line(kanna, task):
    ran = kanna("task", "check", task(CHOICE, "{", {**CHOICE, "label": 7}))
    assert ran.code == 2 and "Traceback" not in ran.err
    assert "line 2: not JSON" in ran.out and "line 3: label 7 of 2 choices" in ran.out
    assert "not sound" in ran.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("check", "--tolerance", "much"), ("tolerance 'much'", "1%")),
        (("check", "--context", 20), ("--context says nothing without a model", "--model")),
        (("check", "--tolerance", "1pt", "--confidence", 1.5), ("confidence of 1.5",)),
        (("split", "--share", 1.5, "--out", "parts"), ("share of 1.5",)),
        (("new", "--kind", "riddle"), ("unknown kind 'riddle'", "known: choice")),
        (("new",), ("exists already", "--force")),
    ],
)
def test_requests_of_kanna_task(refused, task, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    refused("task", words[0], task(CHOICE), *words[1:], named=named)


@pytest.mark.parametrize("changes", [{}, {"eos_token": None}, {"eos_token": None, "bos_token": None}])
@pytest.mark.parametrize("metric", ["greedy", "contains"])
def test_a_tokenizer_without_pad_token(kanna, base, task, changes, metric):
    """Rows of different lengths in one batch give what each gives alone."""
    settings = json.loads((base / "tokenizer_config.json").read_text())
    assert settings.get("pad_token") is None
    kept = {key: value for key, value in settings.items() if key not in changes}
    (base / "tokenizer_config.json").write_text(json.dumps(kept))
    rows = [
        {"prompt": " ".join(WORDS[i : i + count]), "answer": " w4 w5"} for i, count in enumerate((2, 9, 30))
    ]
    words = ("--metric", metric, "--json", "--fresh")
    together = kanna("eval", base, "--task", task(*rows), *words)
    assert together.code == 0, together.err
    for row, found in zip(rows, together.json["tasks"][0]["records"], strict=True):
        alone = kanna("eval", base, "--task", task(row), *words).json["tasks"][0]["records"][0]
        assert found["predicted"] == alone["predicted"]
        assert found["values"]["log_loss"] == pytest.approx(alone["values"]["log_loss"], abs=1e-4)
    assert (metric == "greedy") == (found["predicted"] == "")


@pytest.mark.parametrize(
    ("rows", "words"),
    [([CHOICE, CHOICE], ()), ([ANSWER], ()), ([ANSWER], ("--metric", "contains")), ([TEXT], ())],
)
def test_logits_that_are_not_finite(refused, base, task, tmp_path, rows, words):
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    words = (*words, "--out", tmp_path / "out")
    refused("eval", base, "--task", task(*rows), *words, named=("task.jsonl", "not finite"))


def test_a_failed_task_leaves_the_others_in_the_cache(kanna, shared_base, task, tmp_path, monkeypatch):
    """The second task is refused after the first was scored; the first is not scored again."""
    good, bad = task(CHOICE, name="good.jsonl"), task(*long_rows(CHOICE), name="bad.jsonl")
    words = ("eval", shared_base, "--task", good, "--task", bad, "--context", 16, "--refuse-long")
    assert kanna(*words).code == 2
    import kanna.runs.opened as module

    monkeypatch.setattr(module, "load_weights", None)
    words = ("eval", shared_base, "--task", good, "--context", 16, "--refuse-long", "--json")
    assert kanna(*words).json["run"] == {"cached": True}


def test_tasks_of_one_name_are_scored_apart(kanna, shared_base, tmp_path):
    paths = []
    for folder, label in (("a/data", 0), ("b/data", 1)):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(tmp_path / folder / "task.jsonl")
        paths[-1].write_text(json.dumps({**CHOICE, "label": label}))
    found = kanna("eval", shared_base, "--task", paths[0], "--task", paths[1], "--json").json["tasks"]
    assert [one["task"] for one in found] == ["a/data/task.jsonl", "b/data/task.jsonl"]
    assert sorted(one["value"] for one in found) == [0.0, 1.0]


def test_an_empty_text_row_counts_nothing(kanna, shared_base, task):
    with_empty = kanna(
        "eval", shared_base, "--task", task(TEXT, {"text": ""}, TEXT, name="a.jsonl"), "--json"
    )
    without = kanna("eval", shared_base, "--task", task(TEXT, TEXT, name="b.jsonl"), "--json")
    assert with_empty.code == without.code == 0, with_empty.err
    values = [ran.json["tasks"][0]["value"] for ran in (with_empty, without)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_table_from_a_spreadsheet_is_checked_split_and_scored(kanna, shared_base, tmp_path):
    lines = [f"w{i} w{i + 1} w{i + 2} w{3 * i % 90};w4;w5;{'w4' if i % 3 else 'w5'}" for i in range(40)]
    (tmp_path / "mails.csv").write_bytes(
        "\r\n".join(["\ufeffPrompt;choice_0;choice_1;Label", *lines, ";;;", ""]).encode()
    )
    assert kanna("task", "check", tmp_path / "mails.csv").code == 0
    assert kanna("task", "split", tmp_path / "mails.csv", "--out", tmp_path / "parts").code == 0
    values = []
    for path, rows in ((tmp_path / "mails.csv", 40), (tmp_path / "parts" / "test.jsonl", 32)):
        found = kanna("eval", shared_base, "--task", path, "--json").json["tasks"][0]
        assert found["rows"] == rows
        values.append(found["floors"]["constant"])
    assert values[0] == 26 / 40 and abs(values[1] - 26 / 40) < 0.03
    shutil.rmtree(tmp_path / "parts")
