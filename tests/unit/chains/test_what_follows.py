"""The table of docs/architecture.md that says which step may follow which: each cell is tried out."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kanna
from kanna.errors import InputError
from kanna.methods.basel.step import STEP as BASEL
from kanna.methods.export.step import STEP as EXPORT
from kanna.methods.laser.arena import SearchOptions, open_arena
from kanna.methods.laser.step import STEP as LASER
from kanna.methods.lowrank.step import STEP as LOWRANK
from kanna.methods.peqa.step import STEP as TUNE
from kanna.methods.quantize.step import STEP as QUANTIZE

Base = Callable[[str], Path]
PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
STEPS = {
    "lowrank": LOWRANK,
    "laser apply": LASER,
    "laser search": LASER,
    "basel": BASEL,
    "quantize": QUANTIZE,
    "tune": TUNE,
    "export": EXPORT,
}


def table() -> dict[tuple[str, str], str]:
    """(what the source holds, step) -> the cell."""
    lines = PAGE.read_text(encoding="utf-8").partition("| the source holds |")[2].splitlines()
    steps = [name.strip(" `") for name in lines[0].split("|")[:-1]]
    found = {}
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        held, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found |= {(held, step): cell for step, cell in zip(steps, cells, strict=True)}
    return found


CELLS = table()


@pytest.fixture(scope="module")
def holding(bases: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model that holds what a row of the table says; made once."""
    root, made = tmp_path_factory.mktemp("holding"), {}

    def compressed(family: str, **settings: object) -> Path:
        config = kanna.LowRankConfig(rank=3, method="plain", align=1, **settings)  # type: ignore[arg-type]
        return kanna.lowrank(bases(family), root / str(len(made)), config).out  # type: ignore[return-value]

    def quantised() -> Path:
        path = Path(shutil.copytree(bases("llama"), root / "quantised"))
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (path / "config.json").write_text(json.dumps(config))
        return path

    makers: dict[str, Callable[[], Path]] = {
        "dense": lambda: bases("llama"),
        "low_rank": lambda: compressed("llama"),
        "pivot": lambda: compressed("llama", storage="pivot"),
        "rows": lambda: compressed("gpt2", select="q,k"),
        "int": lambda: (
            kanna.quantize(bases("llama"), root / "int", kanna.QuantizeConfig(bits=4, group=8)).out
        ),
        "quantised by others": quantised,
    }

    def model(held: str) -> Path:
        if held not in made:
            made[held] = makers[held]()
        return made[held]

    return model


def ask(step: str, model: Path, task: Path) -> None:
    """As much of a step as it takes to be refused."""
    if step == "laser search":
        open_arena(model, task, SearchOptions(), kanna.EvalOptions())
        return
    settings = {
        "lowrank": {"keep": 0.7, "method": "plain", "align": 1},
        "laser": {"edits": ["q:0:k=2"]},
        "basel": {"data": str(task), "keep": 0.7},
        "quantize": {"bits": 4, "group": 8},
        "tune": {"data": str(task), "name": "law"},
        "export": {"format": "dense"},
    }
    name = step.split()[0]
    kanna.run({"model": str(model), "steps": [{name: settings[name]}]}, dry_run=True)


def test_the_table_is_read() -> None:
    assert {step for _, step in CELLS} == STEPS.keys() and len(CELLS) == 42


@pytest.mark.parametrize(("held", "step"), CELLS)
def test_the_cell_is_true(held: str, step: str, holding: Callable[[str], Path], tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    draw = random.Random(0)
    prompts = ["".join(draw.choices("abcdefghijkl", k=10)) for _ in range(120)]
    rows = [{"prompt": p, "choices": ["e", "f"], "label": i % 2} for i, p in enumerate(prompts)]
    task.write_text("\n".join(map(json.dumps, rows)))
    model, cell = holding(held), CELLS[held, step]
    if cell == "yes":
        ask(step, model, task)
        return
    with pytest.raises(InputError, match=re.escape(cell.removeprefix("refused: "))) as error:
        ask(step, model, task)
    assert error.value.remedy


@pytest.mark.parametrize("step", STEPS)
def test_what_a_step_accepts_are_its_rows(step: str) -> None:
    """A form of the table is accepted where its cell says so; and every form that can be stored has a row."""
    from kanna.forms.base import _KNOWN

    rows = {held for held, _ in CELLS} - {"quantised by others"}
    # Other tests register forms of their own.
    assert rows == {name for name, form in _KNOWN.items() if form.__module__.startswith("kanna.")}
    accepts = STEPS[step].accepts
    taken = rows if accepts is None else rows & set(accepts)
    # Forms that may lie around what a step is for.
    around = {"low_rank", "pivot", "rows"} if step == "tune" else set()
    assert {held for held in rows if CELLS[held, step] == "yes"} | {"dense"} | around == taken
