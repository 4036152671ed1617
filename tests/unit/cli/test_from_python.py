"""What a program of the user meets: types that are real, tasks in any form, results that show themselves."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import kanna as package
from kanna.errors import InputError

ROOT = Path(__file__).parents[3]
ROWS = [{"prompt": f"w{i} w{i + 1}", "choices": ["w3", "w5"], "label": i % 2} for i in range(6)]
SCRIPT = """
import kanna

kanna.nothing
kanna.LowRankConfig(kep=0.8)
result = kanna.evaluate("MODEL", "app.jsonl")
result.scores[0].valu
kanna.LowRankConfig(keep=0.8)
reveal_type(result.scores[0].value)
kanna.evaluate("MODEL", 3)
kanna.scales.nothing
"""
# Line of the script -> what a type checker says of it.
WRONG = {4: "nothing", 5: "kep", 7: "valu", 9: "float", 10: "int", 11: "nothing"}


@pytest.mark.slow
def test_wrong_names_are_seen_by_a_type_checker(tmp_path):
    """With what mypy knows of the package already, where there is something."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    checker = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    asked = [*checker, "--cache-dir", str(ROOT / ".mypy_cache"), str(script)]
    said = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT).stdout
    found: dict[int, str] = {}
    for number, text in re.findall(r"script\.py:(\d+): (.*)", said):
        found.setdefault(int(number), text)
    assert found.keys() == WRONG.keys(), said
    assert all(word in found[line] for line, word in WRONG.items()), said


def test_what_checkers_see_is_what_comes():
    """Every public name is imported for them from where it comes."""
    text = (ROOT / "src" / "kanna" / "__init__.py").read_text()
    seen = {
        name: f"{module}:{attribute}"
        for module, attribute, name in re.findall(r"^    from (\S+) import (\w+) as (\w+)$", text, re.M)
    }
    assert seen.pop("scales") == "kanna:scales"
    assert seen == package._LAZY
    assert {*seen, "scales", "InputError", "KannaError", "__version__"} == set(package.__all__)


def test_one_file_several_or_rows(shared_base, tmp_path, monkeypatch):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    import json

    path = tmp_path / "app.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    ways = [package.evaluate(shared_base, given) for given in (path, str(path), [path], ROWS)]
    assert all(way.scores[0].records == ways[0].scores[0].records for way in ways)
    assert [way.scores[0].task for way in ways] == ["app.jsonl"] * 3 + ["rows"]
    assert len(package.evaluate(shared_base, ROWS, package.EvalOptions(limit=2)).scores[0].records) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [(3, "found int"), ([3], "found int"), ([ROWS[0], "a.jsonl"], "found dict"), ([], "nothing to evaluate"),
     ([{"question": "a"}], "rows, row 1"), (b"a", "found bytes|found int")],
)  # fmt: skip
def test_what_is_no_task(shared_base, given, said):
    with pytest.raises(InputError, match=said):
        package.evaluate(shared_base, given)


def test_results_show_themselves_in_a_line(shared_base, tmp_path, monkeypatch):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    result = package.evaluate(shared_base, ROWS)
    shown = repr(result)
    assert str(result) == shown
    assert shown.startswith("<Evaluation of ") and " acc " in shown and len(shown) < 200


def test_docstrings_say_what_comes_back():
    """Of every function: what it returns, and each of its arguments that is no matter of course."""
    import inspect

    for name in package.__all__:
        function = getattr(package, name)
        if inspect.isfunction(function):
            assert "Returns:" in (function.__doc__ or ""), name


def test_a_model_in_memory_is_evaluated_as_it_is(shared_base, tmp_path, monkeypatch):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    model, tokenizer = package.load(shared_base, dtype="float32")
    model.train()
    model.model.layers[1].eval()
    ways = [
        package.evaluate((model, tokenizer), ROWS),
        package.evaluate(model, ROWS, tokenizer=tokenizer),
        package.evaluate(shared_base, ROWS),
    ]
    assert model.training and not model.model.layers[1].training and model.model.layers[0].training
    assert all(way.scores[0].records == ways[2].scores[0].records for way in ways)
    assert [way.model for way in ways] == [shared_base.name] * 3
    model.lm_head.weight.data.zero_()  # so the embeddings, too, which are the same
    changed = package.evaluate((model, tokenizer), ROWS)
    assert changed.scores[0].records != ways[0].scores[0].records and "cached" not in changed.run


def test_texts_are_texts(shared_base, tmp_path, monkeypatch):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    texts = ["w1 w2 w3 w4 w5 w6", "w7 w8 w9"]
    (score,) = package.evaluate(shared_base, texts).scores
    assert score.kind == "text"
    (rows,) = package.evaluate(shared_base, [{"text": text} for text in texts]).scores
    assert score.records == rows.records
    with pytest.raises(InputError, match=r"no such file\.txt does not exist"):
        package.evaluate(shared_base, ["no such file.txt"])


@pytest.mark.parametrize(
    "text",
    [
        "東京は日本の首都であり、" * 30,
        "東京は日本の首都です",
        "GPT/4。",
        "東京は日本の 首都であり、" * 12,
        "w1 " * 200,
        "ประเทศไทย",
    ],
)
def test_a_text_is_one_in_any_script_and_of_any_length(shared_base, tmp_path, monkeypatch, text):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (score,) = package.evaluate(shared_base, [text, "w1 w2 w3"]).scores
    assert score.kind == "text" and score.rows


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("東京は日本の首都であり、" * 30, "東京は.*… cannot be read: File name too long"),
        (["問題.jsonl"], r"問題\.jsonl does not exist"),
        (["データ/問題"], "データ/問題 does not exist"),
        (["a" * 300], "a… cannot be read: File name too long"),
    ],
)
def test_names_of_files_that_are_not_there(shared_base, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        package.evaluate(shared_base, given)


@pytest.mark.parametrize(
    "call", [lambda name: package.evaluate(name, ROWS), lambda name: package.report(name)]
)
def test_names_too_long_for_files_are_told(call):
    with pytest.raises(InputError, match="x… cannot be read: File name too long"):
        call("x" * 300)


def test_one_is_taken_where_several_are(tmp_path):
    """One path of a report and one guard are not read letter by letter."""
    with pytest.raises(InputError, match="results holds no results"):
        (tmp_path / "results").mkdir()
        package.report(str(tmp_path / "results"), tmp_path / "page.html")
    alone, listed = (package.criteria_of("a.jsonl", "1%", one) for one in ("b.txt=3%", ["b.txt=3%"]))
    assert alone == listed and [rule.task for rule in alone.rules] == ["a.jsonl", "b.txt"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda base, out: package.evaluate(3, ROWS), "a model must be str or Path, found int"),
        (
            lambda base, out: package.evaluate(base, ROWS, {"limit": 2}),
            "options must be EvalOptions, found dict",
        ),
        (lambda base, out: package.evaluate(base, ROWS, tokenizer=len), "a directory has its tokenizer"),
        (
            lambda base, out: package.evaluate(package.load(base)[0], ROWS),
            "a loaded model needs its tokenizer",
        ),
        (lambda base, out: package.evaluate(base, ROWS, progress=3), "progress is a function .*, found int"),
        (lambda base, out: package.inspect(None), "a model must be str or Path, found NoneType"),
        (lambda base, out: package.bench(base, options={}), "options must be BenchOptions, found dict"),
        (lambda base, out: package.compare(base, base, "1%"), "criteria must be Criteria, found str"),
        (lambda base, out: package.criteria_of(3), "tasks must be str or Path or list or tuple, found int"),
        (lambda base, out: package.criteria_of([3]), "must be a text, found 3"),
        (
            lambda base, out: package.lowrank(base, out, {"keep": 0.5}),
            "config must be LowRankConfig, found dict",
        ),
        (lambda base, out: package.lowrank(base, out, None), "config must be LowRankConfig, found NoneType"),
        (
            lambda base, out: package.lowrank(base, 3, package.LowRankConfig(keep=0.5)),
            "out must be str or Path",
        ),
        (lambda base, out: package.quantize(base, out, package.LowRankConfig(keep=0.5)), "QuantizeConfig"),
        (
            lambda base, out: package.lowrank(base, out, package.LowRankConfig(keep=0.5), criteria="1%"),
            "criteria must be Criteria, found str",
        ),
    ],
)
def test_arguments_of_other_kinds_are_told(shared_base, tmp_path, call, said):
    with pytest.raises(InputError, match=said) as refused:
        call(shared_base, tmp_path / "out")
    assert refused.value.remedy
    assert not (tmp_path / "out").exists()


def test_bars_are_drawn_in_a_notebook_and_lines_elsewhere(shared_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    drawn = []

    def display(html, display_id):
        drawn.append(html)
        return SimpleNamespace(update=drawn.append)

    shell = SimpleNamespace(kernel=object())
    running = SimpleNamespace(
        get_ipython=lambda: shell, display=SimpleNamespace(display=display, HTML=lambda text: text)
    )
    monkeypatch.setitem(sys.modules, "IPython", running)
    package.evaluate(shared_base, ROWS, progress=True)
    assert "<progress value=" in drawn[0] and "took" in drawn[-1] and drawn[-1].count("log-likelihood") == 1
    assert "log-likelihood" not in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "IPython")
    package.evaluate(shared_base, ROWS, progress=True, fresh=True)
    assert "log-likelihood 0/" in capsys.readouterr().err
