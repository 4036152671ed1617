"""What a report shows of quantised models, held against the weights in the files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kanna
from kanna.methods.quantize.report import VIEWS
from kanna.reporting.blocks import At, Chart, Figure, Section, Table
from kanna.reporting.views import Result
from kanna.runs.source import Source

Base = Callable[[str], Path]


@pytest.fixture(scope="module")
def two(bases: Base, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One without text, with other bits for some, and one with."""
    root = tmp_path_factory.mktemp("two")
    alone = kanna.QuantizeConfig(bits=3, group="8", method="minmax", bits_of=("fc_out=8",))
    kanna.quantize(bases("gpt2"), root / "alone", alone)
    fitted = kanna.QuantizeConfig(bits=2, group="8", context=16)
    kanna.quantize(bases("gpt2"), root / "fitted", fitted, calibration=text)
    return root / "alone", root / "fitted"


def results(*places: Path) -> list[Result]:
    made = []
    for place in places:
        lineage = At(place.name, json.loads((place / "kanna.json").read_text()))
        made.append(Result(lineage["steps"][0], lineage))
    return made


def drawn(*places: Path) -> list[Section]:
    (view,) = VIEWS
    return view.draw(results(*places))[1]


def titled(section: Section, title: str) -> Any:
    return next(block for block in section.blocks if getattr(block, "title", "") == title)


def told(cell: Any) -> str:
    return cell.text if isinstance(cell, Figure) else cell


def test_errors_are_those_of_the_weights(two: tuple[Path, Path], bases: Base) -> None:
    """By role and over layers; bits with scales, zero-points and the one number that stands for weights."""
    (section,) = drawn(two[0])
    before, after = Source.open(bases("gpt2")), Source.open(two[0])
    off: dict[str, list[float]] = {}
    for matrix in before.inventory.matrices:
        weight, new = before.weight(matrix), after.weight(matrix)
        off.setdefault(matrix.role, []).append(float((weight - new).norm() / weight.norm()))
    table: Table = titled(section, "What rounding cost, by role")
    shown = {told(row[0]): [told(cell) for cell in row] for row in table.rows}
    assert shown.keys() == off.keys()
    for role, errors in off.items():
        bits = 8 if role == "fc_out" else 3
        m, n = next(m.shape for m in before.inventory.matrices if m.role == role)
        words, groups = -(-n * bits // 32), -(-n // 8)
        assert shown[role][2] == f"{(32 * words + 40 * groups) / n + 32 / (m * n):.2f}"
        assert shown[role][3] == f"{100 * sum(errors) / len(errors):.1f} %"
        assert shown[role][4] == f"{100 * max(errors):.1f} %"
    chart: Chart = titled(section, "Error of weights by layer and role")
    assert chart.table is not None
    roles = [column.removeprefix(">") for column in chart.table.columns[1:]]
    for layer, row in enumerate(chart.table.rows):
        assert list(row) == [str(layer), *(f"{100 * off[role][layer]:.1f} %" for role in roles)]


def test_outputs_count_where_there_was_text(two: tuple[Path, Path]) -> None:
    first, alone, fitted = drawn(*two)
    scores = json.loads((two[1] / "kanna.json").read_text())["steps"][0]["scores"]
    chart: Chart = titled(fitted, "Error of outputs by layer and role")
    worst = scores["worst_matrix"]
    assert f"{worst}: weights " in chart.svg
    assert f"outputs {100 * max(scores['output_error'].values()):.1f} %" in chart.svg
    assert "error of outputs" not in [column.removeprefix(">") for column in
        titled(alone, "What rounding cost, by role").columns]  # fmt: skip
    rows = [[told(cell) for cell in row] for row in titled(first, "Quantised models").rows]
    named = {row[0]: row for row in rows}
    assert named["alone"][2] == "3 bits, groups of 8, minmax" and named["fitted"][2].endswith("gptq")
    mean = sum(scores["output_error"].values()) / len(scores["output_error"])
    assert named["fitted"][-1] == f"{100 * mean:.1f} %" and named["alone"][-1] == ""


def test_what_text_does_not_reach_shows_its_weights(two: tuple[Path, Path]) -> None:
    (result,) = results(two[1])
    scores = result.at.data["scores"]
    name = next(name for name in scores["output_error"] if name != scores["worst_matrix"])
    scores["output_error"][name] = None
    (view,) = VIEWS
    chart: Chart = titled(view.draw([result])[1][0], "Error of outputs by layer and role")
    assert "text does not reach it" in chart.svg and "1 matrices" not in chart.caption
    assert "Of one matrix that the text does not reach, the error of weights." in chart.caption


def test_the_page_needs_no_torch(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code = (
        "import sys; from kanna.cli.main import main\n"
        f"code = main(['report', *{list(map(str, two))!r}, '--out', {str(page)!r}])\n"
        "print(code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 []"
    assert "Whole numbers of fitted" in page.read_text() and "Quantised models" in page.read_text()


def test_lineages_of_an_earlier_version_are_drawn(two: tuple[Path, Path], tmp_path: Path) -> None:
    """They have no roles."""
    (result,) = results(two[0])
    del result.at.data["scores"]["roles"]
    (view,) = VIEWS
    (section,) = view.draw([result])[1]
    assert [type(block).__name__ for block in section.blocks] == ["Paragraph", "Paragraph", "Chart"]


def test_a_mixed_model_is_one_section_a_step(bases: Base, tmp_path: Path) -> None:
    """Factors that became whole numbers are drawn like matrices."""
    low = kanna.LowRankConfig(rank=4, method="plain", align=1)
    kanna.lowrank(bases("llama"), tmp_path / "low", low)
    kanna.quantize(tmp_path / "low", tmp_path / "out", kanna.QuantizeConfig(bits=4, group="8"))
    lineage = At("out", json.loads((tmp_path / "out" / "kanna.json").read_text()))
    (view,) = VIEWS
    (section,) = view.draw([Result(lineage["steps"][1], lineage)])[1]
    chart: Chart = titled(section, "Error of weights by layer and role")
    assert chart.table is not None
    assert list(chart.table.columns) == [
        "layer",
        *(f">{r}" for r in ("q", "k", "v", "o", "gate", "up", "down")),
    ]
    assert torch.isfinite(
        torch.tensor(list(lineage.data["steps"][1]["scores"]["weight_error"].values()))
    ).all()
