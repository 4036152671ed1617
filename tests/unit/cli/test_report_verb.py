"""From what the verbs really write to a page."""

import json
import subprocess
import sys

import pytest
from tiny_model import WORDS

CHOICES = [
    {
        "prompt": f"{WORDS[i]} {WORDS[i + 1]}",
        "choices": [f" {WORDS[i + 40]}", f" {WORDS[i + 45]}"],
        "label": i % 2,
    }
    for i in range(1, 41)
]


@pytest.fixture
def results(kanna, base, small, text, tmp_path):
    """A folder that compare, eval and bench wrote, and a model whose lineage holds a comparison."""
    task = tmp_path / "choices.jsonl"
    task.write_text("\n".join(json.dumps(row) for row in CHOICES) + "\n")
    out = tmp_path / "R"
    asked = ("--task", task, "--task", text, "--max-drop", "20%")
    judged = ("--keep", 0.5, "--method", "plain", "--align", 1, "--out", tmp_path / "half", *asked)
    codes = [
        kanna("compare", base, small, *asked, "--blame", "--out", out, "-q").code,
        kanna("lowrank", base, *judged, "-q").code,
        kanna("eval", small, "--task", task, "--out", out, "-q").code,
        kanna("bench", small, "--against", base, "--context", "4,8", "--new-tokens", 2, "--repeats", 1,
              "--warmup", 0, "--no-memory", "--estimate-energy", 10, "--out", out, "-q").code,
    ]  # fmt: skip
    assert codes[0] in (0, 3) and codes[1] in (0, 3) and codes[2:] == [0, 0]
    return out, tmp_path / "half"


def test_a_report_of_what_the_verbs_write(kanna, results, small, tmp_path):
    page = tmp_path / "page.html"
    ran = kanna("report", *results, small, "--out", page, "--title", "Mine", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["html"] == str(page)
    assert ran.json["sources"] == [
        "R/bench-small.json", "R/compare-small.json", "R/eval-small.json", "half", "small",
    ]  # fmt: skip
    compared = json.loads((results[0] / "compare-small.json").read_text())
    inside = json.loads((results[1] / "kanna.json").read_text())["steps"][-1]["scores"]["comparison"]
    assert ran.json["verdicts"] == {
        "small against base": compared["status"],
        "half against base": inside["status"],
    }
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    for section in ("# Mine", "## small against base", "## small on its own", "## Bench of small"):
        assert f"\n{section}\n" in f"\n{text}"
    assert "## Lineage of half" in text and "(estimated)" in text and "Which matrix does the harm" in text


def test_a_report_is_not_overwritten(kanna, results, tmp_path, unchanged):
    page = tmp_path / "page.html"
    assert kanna("report", results[0], "--out", page).out.splitlines()[-2:] == [
        f"written: {page}", f"written: {page.with_suffix('.md')}",
    ]  # fmt: skip
    before = unchanged(tmp_path)
    ran = kanna("report", results[0], "--out", page)
    assert ran.code == 2 and "exists already" in ran.err and "--force" in ran.err
    assert unchanged(tmp_path) == before
    assert kanna("report", results[0], "--out", page, "--force", "--no-examples").code == 0


def test_a_report_of_nothing_is_refused(kanna, tmp_path, unchanged):
    for words in ((tmp_path,), (tmp_path / "missing",)):
        ran = kanna("report", *words, "--out", tmp_path / "page.html")
        assert ran.code == 2 and ran.out == "" and "help:" in ran.err
        assert not unchanged(tmp_path)
    assert kanna("report").code == 2


def test_a_report_needs_no_torch(results, tmp_path):
    words = [str(results[0]), "--out", str(tmp_path / "page.html")]
    code = (
        "import sys; from kanna.cli.main import main\n"
        f"code = main(['report', *{words}])\n"
        "print(code, [m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 []"
