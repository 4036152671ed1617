"""What a report shows of the sets of a directory, held against the files of the sets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.peqa.report import VIEWS
from kanna.methods.peqa.results import gather
from kanna.reporting.blocks import At, Chart, Figure, Paragraph, Section, Table
from kanna.reporting.views import Result
from kanna.runs.criteria import criteria_of


def drawn(directory: Path) -> list[Section]:
    held = gather(directory)
    assert held is not None
    (view,) = VIEWS
    return view.draw([Result(At(directory.name, held))])[1]


def titled(section: Section, title: str) -> Any:
    return next(block for block in section.blocks if getattr(block, "title", "") == title)


def told(cell: Any) -> str:
    return cell.text if isinstance(cell, Figure) else cell


def rewritten(directory: Path, name: str, change: Any) -> None:
    path = directory / "scales" / name / "scales.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_sets_side_by_side(base: Path) -> None:
    kanna.scales.activate(base, "law")
    first, *_ = drawn(base)
    assert told(first.blocks[0].cells[0]) == (  # type: ignore[union-attr]
        "3 sets of scales for the same whole numbers; in use is law."
    )
    table: Table = titled(first, "What they are")
    rows = [dict(zip(table.columns, map(told, row), strict=True)) for row in table.rows]
    assert [row["set"] for row in rows] == ["fine", "law", "support"]
    for row in rows:
        held = load_file(base / "scales" / row["set"] / "scales.safetensors")
        squares = [float(value.double().square().mean()) for value in held.values()]
        assert row[">scales moved by"] == f"{100 * (sum(squares) / len(squares)) ** 0.5:.1f} %"
        assert row[">at most"] == f"{100 * max(float(value.abs().max()) for value in held.values()):.1f} %"
        assert row[">numbers"] == f"{sum(value.numel() for value in held.values()):,}"
        assert row["a number for"] == ("each group" if row["set"] == "fine" else "each row")
        assert (row["in use"] != "") == (row["set"] == "law")
    scores = json.loads((base / "scales" / "law" / "scales.json").read_text())["scores"]
    measured = [list(map(told, row)) for row in titled(first, "What they changed").rows]
    losses = [f"{scores[f'held_out_loss_{when}']:.4f}" for when in ("before", "after")]
    assert ["law", "loss on rows that were not learnt", *losses] in measured


def test_how_one_was_learnt(base: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["scores"] |= {
            "losses": [4.0, 2.0],
            "validation": [[0, 3.0], [1, 1.5], [2, 2.5]],
            "best_step": 1,
        }

    rewritten(base, "law", change)
    section = next(one for one in drawn(base) if one.title == "Scales law of base")
    assert isinstance(section.blocks[0], Paragraph)
    assert "2 steps. Kept is the state after step 1" in str(section.blocks[0].cells[0])
    chart: Chart = titled(section, "Loss while scales learn")
    assert list(chart.marks) == [
        "learnt: 4.0000 in the first step, 2.0000 in the last",
        "rows that are not learnt: 3.0000 at first, 1.5000 at step 1",
    ]
    upright = [line for line in chart.svg.split("<line ")[1:] if 'class="event"' in line]
    assert len(upright) == 1 + 2  # the state that was kept, and the lines to two names
    moved: Chart = titled(section, "How far scales moved")
    held = load_file(base / "scales" / "law" / "scales.safetensors")
    assert moved.table is not None
    shown = {row[0]: row[1:] for row in moved.table.rows}
    assert shown == {
        path: (f"{100 * float(v.square().mean().sqrt()):.1f} %", f"{100 * float(v.abs().max()):.1f} %")
        for path, v in held.items()
    }
    assert moved.svg.count('class="mark tile"') == len(held)
    assert all(f">{role}</text>" in moved.svg for role in ("q", "gate", "down"))


def test_a_loss_that_rose_is_said(base: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["scores"] |= {"validation": [[0, 1.25], [1, 1.5], [2, 2.5]], "best_step": 1}

    rewritten(base, "law", change)
    section = next(one for one in drawn(base) if one.title == "Scales law of base")
    assert isinstance(section.blocks[0], Paragraph)
    assert "1.5000, is the least of all steps, but more than the 1.2500 before." in section.blocks[0].cells[0]


def test_sets_that_were_judged_are_among_the_models(
    base: Path, data: Path, asked: Path, tmp_path: Path
) -> None:
    """Inside a directory and in a new one: with a card and a mark of their own, once."""
    config = kanna.TuneConfig(data=data, name="new", steps=3, rows=8, allow_overlap=True)
    for out in (None, tmp_path / "apart"):
        criteria = criteria_of([str(asked)], "50%", [], 0.95)
        kanna.tune(base, config, out=out, criteria=criteria, cache=tmp_path / "cache")
    titles = {base: "base + new against base", tmp_path / "apart": "apart against base"}
    for place, title in titles.items():
        result = kanna.report([place], tmp_path / f"{place.name}.html")
        assert list(result.verdicts).count(title) == 1
        page = (tmp_path / f"{place.name}.html").read_text()
        assert page.count(f"<h2>{title}</h2>") == 2  # its card and its scores
        assert "greedy against size" in page
        record = json.loads((place / "scales" / "new" / "scales.json").read_text())
        assert record["scores"]["comparison"]["model"]["model"] == ("new" if place == base else "apart")
        measured = [list(map(told, row)) for row in titled(drawn(place)[0], "What they changed").rows]
        assert any(row[:2] == ["new", "test.jsonl (greedy)"] for row in measured)
    lineage = json.loads((tmp_path / "apart" / "kanna.json").read_text())
    assert lineage["steps"][-1]["scores"] == record["scores"]


def test_sets_of_one_name_are_told_apart(base: Path, data: Path, asked: Path, tmp_path: Path) -> None:
    """Two models with a set each of one name, and two sets that changed nothing."""
    other = Path(shutil.copytree(base, tmp_path / "other"))
    for place in (base, other):
        config = kanna.TuneConfig(data=data, name="new", steps=1, rows=8, rate=1e-9, allow_overlap=True)
        kanna.tune(place, config, criteria=criteria_of([str(asked)], "50%", [], 0.95), cache=tmp_path / "c")
        shutil.copytree(place / "scales" / "new", place / "scales" / "same")
        rewritten(place, "same", lambda record: record.update(name="same"))
        rewritten(place, "same", lambda record: record["scores"]["comparison"]["model"].update(model="same"))
    named = list(kanna.report([base, other], tmp_path / "page.html").verdicts)
    for title in ("base + new against base", "base + same against base", "other + new against other"):
        assert title in named


def test_a_model_without_sets_has_no_section_of_them(base: Path) -> None:
    shutil.rmtree(base / "scales")
    assert gather(base) is None
    (base / "scales" / ".law.partial").mkdir(parents=True)
    (base / "scales" / ".law.partial" / "scales.json").write_text("{}")
    assert gather(base) is None


def test_pages_are_the_same_each_time(base: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        kanna.report([base], tmp_path / f"{name}.html")
        texts.append((tmp_path / f"{name}.html").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.update(format_version=99), "upgrade kanna"),
        (lambda record: record.pop("codes"), "is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(change: Any, words: str, base: Path, tmp_path: Path) -> None:
    rewritten(base, "law", change)
    with pytest.raises(InputError) as error:
        kanna.report([base], tmp_path / "page.html")
    assert words in f"{error.value.problem} {error.value.remedy}" and "scales.json" in error.value.problem
    assert not (tmp_path / "page.html").exists()


def test_a_set_that_says_nothing_of_its_movement_has_no_map(base: Path) -> None:
    """Those of a training loop of somebody's own have no course, those of an earlier version no movement."""
    shutil.rmtree(base / "scales" / "fine")
    rewritten(base, "law", lambda record: record.pop("moved"))
    rewritten(base, "support", lambda record: record.update(scores={}))
    _, law, support = drawn(base)
    assert [block.title for block in law.blocks[1:]] == ["Loss while scales learn"]  # type: ignore[union-attr]
    assert [block.title for block in support.blocks] == ["How far scales moved"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("family", "roles", "others"),
    [("llama", ("up", "down"), ("fc_in",)), ("nemotron", ("fc_in", "fc_out"), ("up",))],
)
def test_maps_name_roles_as_tables_do(
    family: str,
    roles: tuple[str, ...],
    others: tuple[str, ...],
    bases: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
) -> None:
    """Of a gated network of which two layers are quantised, and of one that has no third one."""
    directory = tmp_path / "packed"
    chosen = kanna.QuantizeConfig(bits=4, group=8, select=",".join(roles), method="minmax")
    kanna.quantize(bases(family), directory, chosen)
    kanna.tune(directory, kanna.TuneConfig(data=data, name="law", steps=1, rows=4))
    chart: Chart = titled(drawn(directory)[1], "How far scales moved")
    page = tmp_path / "map.html"
    assert main(["scales", "diff", str(directory), "law", "base", "--out", str(page)]) == 0
    for drawing in (chart.svg, page.read_text()):
        assert all(f">{role}<" in drawing for role in roles)
        assert not any(f">{role}<" in drawing for role in others)
