"""What documents say of the repository is true of it."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.recipe.schema import Recipe
from kanna.tasks.options import Tolerances

ROOT = Path(__file__).parents[2]
_FLOOR = re.compile(r"^([A-Za-z0-9_-]+)>=([\d.]+)$")


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    assert len(named) > 15
    assert named <= defined, sorted(named - defined)


def test_the_lowest_constraints_are_the_floors_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(match.groups() for one in project["dependencies"] if (match := _FLOOR.match(one)))
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)

    def release(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in (version + ".0.0").split(".")[:3])

    assert len(floors) == len(project["dependencies"])
    assert {name: release(v) for name, v in pinned.items()} == {
        name: release(v) for name, v in floors.items()
    }


DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
# Objects of the house that architecture.md names without their module.
PACKAGES = ("runs", "checkpoint", "forms", "models", "methods", "cli", "terminal", "calibration")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _pyproject() -> dict[str, Any]:
    return tomllib.loads(_text(ROOT / "pyproject.toml"))


def test_the_floors_are_those_of_the_contract() -> None:
    contract = next(
        one for one in _pyproject()["tool"]["importlinter"]["contracts"] if one["type"] == "layers"
    )
    layers = [re.findall(r"kanna\.(\w+)", layer) for layer in contract["layers"]]
    table = _text(ARCHITECTURE).partition("| floor |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    assert [sorted(row) for row in rows] == [sorted(layer) for layer in layers]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    text = _text(document)
    for name in re.findall(r"`([\w*./-]+/[\w*.-]+\.(?:py|yaml|toml|md))`", text):
        if not re.match(r"(models|small|SMALL|walk)/[\w/]+\.yaml", name):
            assert any(list(root.glob(name)) for root in (ROOT, ROOT / "src", ROOT / "src" / "kanna")), name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (document.parent / link).exists(), link
    for link, anchor in re.findall(r"\]\(([^)#:]+)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", _text(document.parent / link), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


def test_the_toy_method_is_quoted_word_for_word() -> None:
    excerpts = re.findall(r"^```python\n(.*?)^```", _text(ARCHITECTURE), re.MULTILINE | re.DOTALL)
    toy = _text(ROOT / "tests" / "support" / "toy_method.py")
    assert len(excerpts) == 5
    assert all(excerpt in toy for excerpt in excerpts)


def _defined() -> set[str]:
    """Functions, classes, and "Class.member" of kanna's packages."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / "src" / "kanna" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(_text(path))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found |= {node.name, f"{path.stem}.{node.name}"}
                if isinstance(node, ast.ClassDef):
                    members = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                    fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                    found |= {f"{node.name}.{one.name}" for one in members}
                    found |= {f"{node.name}.{one.id}" for one in fields if isinstance(one, ast.Name)}
    return found


def test_the_objects_that_the_architecture_names_exist() -> None:
    text, defined = _text(ARCHITECTURE), _defined()
    named = re.findall(r"`(?:[a-z]+\.)*((?:[a-z_]+\.|[A-Z]\w+\.)?_?[A-Za-z]\w+)(?:\([^`]*\))?`", text)
    calls = [name for name in re.findall(r"`([^`]+)`", text) if re.fullmatch(r"[\w.]+\([^)]*\)", name)]
    dotted = {name for name in named if "." in name and re.match(r"[A-Z][a-z]", name)}
    plain = {call.partition("(")[0] for call in calls}
    for name in dotted | plain:
        last = ".".join(name.replace("STEP.", "Step.").split(".")[-2:])
        assert last in defined or last.split(".")[-1] in defined, name
    assert len(dotted | plain) > 20


def test_the_recipes_page_has_every_key() -> None:
    text = _text(ROOT / "docs" / "recipes.md").partition("## Keys of each step")[0]
    keys = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(keys) == sorted(Recipe.model_fields)
    assert all(f"`{key}`" in text for key in Tolerances.model_fields)


def test_the_recipes_page_has_every_key_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the schema has them now: a new setting is missing there until its table is made again."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from recipe_keys import written

    from kanna.recipe.schema import json_schema

    text = _text(ROOT / "docs" / "recipes.md")
    assert written(text) == text, "python scripts/recipe_keys.py --write"
    steps = json_schema()["properties"]["steps"]["items"]["oneOf"]
    assert len(steps) >= 6
    for name, settings in (pair for step in steps for pair in step["properties"].items()):
        section = text.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == settings["properties"].keys()


def test_the_page_of_models_names_every_family_that_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "unit" / "models"))
    import family_configs

    page = _text(ROOT / "docs" / "models.md")
    head = _text(ROOT / "scripts" / "models_table.py").partition('HEAD = """')[2].partition('"""')[0]
    assert head and page.startswith(head), "the page was not made by this script"
    named = set(re.findall(r"`(\w+)`", page.partition("Beside these")[2].partition("\n\n")[0]))
    assert {architecture for _, architecture, _ in family_configs.FAMILIES.values()} <= named


def test_public_names_in_documents_exist() -> None:
    named = {
        name
        for path in DOCUMENTS
        for name in re.findall(r"\bkanna\.([a-z_]\w*)\(|\bkanna\.([A-Z]\w+)\b", _text(path))
        for name in name
        if name
    }
    assert named <= {*kanna.__all__}, sorted(named - {*kanna.__all__})


def test_the_readme_begins_with_what_kanna_does() -> None:
    """A picture, a table, two commands, a walk, serving, what it takes, words: in this order."""
    text = _text(ROOT / "README.md")
    assert (ROOT / "docs" / "demo.png").read_bytes().startswith(b"\x89PNG")
    places = [text.index("](docs/demo.png)"), text.index("| whole numbers of 4 bits |")]
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    first = ["Two commands", "The whole way, on files that are here", "Serve it", "What it takes"]
    assert titles[:6] == [*first, "What the words mean", "All verbs"]
    assert places == sorted(places) and places[-1] < text.index("## Two commands")
    commands = text.partition(f"## {first[0]}")[2].partition("## ")[0]
    assert len(re.findall(r"^    kanna ", commands, re.MULTILINE)) == 2
    walk = text.partition(f"## {first[1]}")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (kanna .*?)(?: *#.*)?$", walk, re.MULTILINE)
    assert len(lines) == 10 and lines[0] == "kanna demo --files walk"
    assert all("walk/" in line for line in lines[1:]), "a file that is not here"


def test_what_was_measured_and_what_computed_never_stand_in_one_column() -> None:
    table = _text(ROOT / "README.md").partition("## What it takes")[2].partition("\n## ")[0]
    heads, *rows = re.findall(r"^\| (.+) \|$", table, re.MULTILINE)
    columns = [head.strip() for head in heads.split("|")]
    assert columns[-4:] == [
        f"{what}, {how}" for what in ("peak memory", "time") for how in ("measured", "computed")
    ]
    assert len(rows) == 9
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[-4] or cells[-3], row
        assert bool(cells[-2]) != bool(cells[-1]), row


def test_the_demo_is_made_without_the_tools_of_developers() -> None:
    """`make -n` says what would be run: no [dev] for the demo, and with it, on top of the same, for tests."""
    import shutil
    import subprocess

    if shutil.which("make") is None:
        pytest.skip("no make")

    def planned(target: str) -> str:
        words = ["make", "-n", target, "VENV=no-such-folder"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    demo, unit = planned("demo"), planned("unit")
    assert "[dev]" not in demo and "--editable ." in demo
    assert "installing kanna" in demo and "activate" in demo and "seconds" in demo
    assert "--editable ." in unit and "[dev]" in unit and unit.index("[dev]") < unit.index("pytest")
