"""What a program of the user meets: types that are real, tasks in any form, results that show themselves."""

import re
import subprocess
import sys
from pathlib import Path

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
    shown = repr(package.evaluate(shared_base, ROWS))
    assert shown.startswith("<Evaluation of ") and " acc " in shown and len(shown) < 200
