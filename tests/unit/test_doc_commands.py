"""The commands that README and docs/ show are run, each document's in order, on the model shipped with kanna.

A command in an indented or fenced block is run, unless SKIPPED says why not; one within a sentence must name
a verb and flags that exist. A new command is therefore run as soon as it is written down.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kanna.cli.main import main, program
from kanna.methods.merge.reading import read_recipe as read_merge
from kanna.recipe.recipe import calls, recipe_of
from kanna.terminal.lazy import LazyCommand

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "kanna" / "demo"
_DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", *_DOCS)

# A command as it is shown -> why it is not run. Its verb and flags are checked all the same.
SKIPPED = {
    "kanna eval MODEL --task app.jsonl --task lm_eval:arc_easy --text general.txt": "needs the data of a "
    "task of lm-evaluation-harness in the local cache",
    **(
        {}
        if find_spec("gguf")
        else {"kanna export INT4 --format gguf --out GGUF --check": "needs the package gguf"}
    ),
}
# A verb -> options that make it short. They come last, so they win.
SHORT = {
    "lowrank": "--select down@-1 --tokens 256 --limit 20",
    "basel": "--select down --epochs 0,1,1 --limit 20",
    "quantize": "--tokens 256 --limit 20",
    "tune": "--steps 3 --allow-overlap --limit 20",
    "laser search": "--roles mlp_out --layers -1 --rho 0.5 --fast 8 --text-tokens 256",
    "laser analyze": "--limit 20 --samples 1",
    "eval": "--limit 20",
    "compare": "--limit 20",
    "bench": "--batch 1 --context 16 --new-tokens 2 --repeats 2 --warmup 1 --no-memory",
    "generate": "--max-new-tokens 4",
}
# What cannot be said of a model with five blocks and 128 positions.
WORDS = {"mlp_in:27:0.01": "mlp_in:3:0.5", "256": "96"}


def _rows(name: str) -> list[dict[str, Any]]:
    lines = (DEMO / "data" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _model(path: Path) -> None:
    shutil.copytree(DEMO / "model", path)


def _jsonl(rows: Callable[[], list[dict[str, Any]]]) -> Callable[[Path], None]:
    return lambda path: _written(path, "".join(json.dumps(row) + "\n" for row in rows()))


def _written(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _questions() -> list[dict[str, Any]]:
    return [{**row, "frequency": row["skill"]} for row in _rows("questions.jsonl")[::2]]


def _text(path: Path) -> None:
    _written(path, "\n\n".join(row["text"] for row in _rows("heldout.jsonl")[:30]))


def _spreadsheet(path: Path) -> None:
    rows = [f'"{row["prompt"]}",yes,no,{("yes", "no")[place % 2]}' for place, row in enumerate(_questions())]
    _written(path, "\n".join(["prompt,choice_0,choice_1,label", *rows]))


_MERGE = "{merge_method: linear, models: [{model: math}, {model: reviews}], parameters: {weight: 0.5}}"

# Name in the documents -> what it stands for.
FILES: dict[str, Callable[[Path], None]] = {
    "MODEL": _model,
    "BASE": _model,
    "model": _model,
    "math": _model,
    "reviews": _model,
    "app.jsonl": _jsonl(_questions),
    "facts.jsonl": _jsonl(_questions),
    "lessons.jsonl": _jsonl(lambda: _rows("questions.jsonl")[1::2]),
    "text.jsonl": _jsonl(lambda: _rows("calibration.jsonl")),
    "train.jsonl": _jsonl(lambda: _rows("calibration.jsonl")),
    "general.txt": _text,
    "reviews.csv": _spreadsheet,
    "tickets.csv": lambda path: _written(path, "Message,Category\nWhy?,a\nHow?,b\nWho?,a\nWhen?,b\n"),
    "math.jsonl": _jsonl(_questions),
    "reviews.jsonl": _jsonl(lambda: _rows("questions.jsonl")[1::2]),
    "recipe.yml": lambda path: _written(path, _MERGE),
    "recipe.yaml": lambda path: _written(path, blocks("README.md", "yaml")[0]),
    "app.yaml": lambda path: _written(path, "tasks: [{task: app.jsonl, max_drop: 50pt}]"),
    "price.yaml": lambda path: _written(path, "{per_hour: 1.20, currency: EUR}"),
}


def shown(document: str) -> list[str]:
    """The commands in blocks of a document, each as one line without its comment."""
    found, fenced, joined = [], False, ""
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        if not (joined or ((fenced or line.startswith("    ")) and re.match(r" *(\$ )?kanna ", line))):
            continue
        joined += line.strip().removeprefix("$ ")
        if joined.endswith("\\"):
            joined = joined.removesuffix("\\")
            continue
        found.append(" ".join(re.sub(r"\s#.*$", "", joined).split()))
        joined = ""
    return found


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def mentioned(document: str) -> list[str]:
    """The commands within sentences and tables of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"(?<!`)`kanna ([^`]+)`(?!`)", text)
    return [" ".join(words.split()) for words in found]


def verb_of(words: list[str]) -> tuple[str, Any]:
    """The words of the verb, and its command."""
    command, taken = program(), 0
    while hasattr(command, "commands") and taken < len(words) and not words[taken].startswith("-"):
        assert words[taken] in command.commands, f"there is no verb {words[taken]} in {words}"
        command, taken = command.commands[words[taken]], taken + 1
        if isinstance(command, LazyCommand):
            command = command._load()
    return " ".join(words[:taken]), command


def check_flags(command: str) -> None:
    """Its verb exists, and has all the flags."""
    words = shlex.split(command.partition(" > ")[0])
    _, found = verb_of(words)
    known = {name for option in found.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    assert not [word for word in unknown if not re.match(r"-\d", word)], (command, unknown)


def run(command: str) -> tuple[int, list[str]]:
    """Its exit code, and the words that were run."""
    words = shlex.split(command.partition(" > ")[0])[1:]
    verb, _ = verb_of(words)
    words = [WORDS.get(word, word) for word in words] + shlex.split(SHORT.get(verb, ""))
    return main([*words, "--threads", "1", "-q"]), words


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the names of the documents stand for something, and part of the repository."""
    for name, make in FILES.items():
        make(tmp_path / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for part in ("model", "data"):
        shutil.copytree(DEMO / part, tmp_path / "src" / "kanna" / "demo" / part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    return tmp_path


WITH_COMMANDS = [document for document in DOCUMENTS if shown(document)]


def test_commands_are_found() -> None:
    assert {"README.md", "docs/recipes.md", "docs/laser.md", "docs/first-poc.md"} <= set(WITH_COMMANDS)
    assert sum(len(shown(document)) for document in WITH_COMMANDS) > 30
    every = {command for document in DOCUMENTS for command in shown(document)}
    assert SKIPPED.keys() <= every, "what is skipped is shown nowhere"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_verb_and_flag_exists(document: str) -> None:
    for command in [*(one.removeprefix("kanna ") for one in shown(document)), *mentioned(document)]:
        check_flags(command)


def test_a_flag_that_does_not_exist_is_noticed() -> None:
    check_flags("laser apply MODEL --edit down:-1:k=4 --out D")
    for wrong in ("laser apply MODEL --rank 3", "lowrnk MODEL", "laser aply MODEL"):
        with pytest.raises(AssertionError):
            check_flags(wrong)


def test_every_recipe_that_is_shown_can_be_read() -> None:
    shown_recipes = [recipe for document in DOCUMENTS for recipe in blocks(document, "yaml")]
    assert len(shown_recipes) >= 2
    for recipe in shown_recipes:
        data = yaml.safe_load(recipe)
        if "merge_method" in data:
            assert read_merge(data).warnings == ()
        else:
            assert calls(recipe_of(data, "shown"), "shown")


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_the_commands_run(document: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in shown(document):
        if command in SKIPPED:
            continue
        code, words = run(command)
        said = capsys.readouterr()
        judged = {"--max-drop", "--tolerance", "--guard"} & set(words) or words[0] == "run"
        assert code in ({0, 3} if judged else {0}), (command, code, said.out, said.err)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = blocks("README.md", "python")
    assert len(snippets) >= 2
    made = "lowrank MODEL --rank 8 --select down@-1 --method plain --out DIR --threads 1 -q"
    assert main(made.split()) == 0
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for snippet in snippets:
            exec(compile(snippet, "README.md", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert names["result"].passed and names["judged"].status in ("pass", "undecided", "fail")
