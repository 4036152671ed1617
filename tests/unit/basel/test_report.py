"""The page of a run, from data made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.methods.basel.report import VIEWS
from kanna.methods.basel.results import Basel
from kanna.reporting.blocks import At, Chart, Section, Table
from kanna.reporting.report import report
from kanna.reporting.views import Result


def matrix(role: str, layer: int, rank: int | None, m: int = 8, n: int = 4) -> dict[str, Any]:
    kept = 1.0 if rank is None else rank * (m + n) / (m * n)
    sizes = {"out_features": m, "in_features": n}
    return {"name": f"{layer}.{role}", "role": role, "layer": layer, **sizes, "rank": rank, "kept": kept}


def part(losses: list[float], validation: list[tuple[int, float]], held: float | None) -> dict[str, Any]:
    return {"losses": losses, "validation": validation, "stopped": "", "held_out": held}


def data(**more: Any) -> dict[str, Any]:
    token = {"token": "PRIVATE", "before": "left ", "after": " right", "value": 3.5}
    basis = {"matrix": "0.q", "place": 2, "before": 1.5, "after": 2.5, "tokens": [token]}
    made: dict[str, Any] = {
        "schema_version": 1,
        "kind": "basel",
        "model": "base",
        "importance": "fisher",
        "parameters": 128,
        "keep_selected": 0.5,
        "keep_model": 0.63,
        "least_keep_model": 0.26,
        "rows": 40,
        "matrices": [matrix("q", 0, 2), matrix("q", 1, 1), matrix("v", 0, None), matrix("v", 1, 1)],
        "events": [{"step": 3, "bases": [3, 2, 4, 2]}, {"step": 5, "bases": [2, 1, 4, 1]}],
        "weights": part([3.0, 2.0, 2.0, 2.5, 2.0, 2.0], [(2, 1.0), (6, 2.25)], 2.25),
        "factors": part([2.0, 1.0], [(1, 1.5), (2, 1.75)], 1.5),
        "moved": [{"matrix": "0.q", "before": [4.0, 3.0, 1.5, 1.0], "after": [4.5, 0.0, 2.5, 0.0]}],
        "gained": [basis],
        "lost": [{**basis, "place": 1, "before": 3.0, "after": 0.0, "tokens": []}],
        "text": {"before": 1.25, "after": 2.5, "tokens": 6000},
        **more,
    }
    assert Basel.model_validate_json(json.dumps(made))
    return made


def sections(*results: dict[str, Any]) -> list[Section]:
    (view,) = VIEWS
    return view.draw([Result(At(f"r{i}", one)) for i, one in enumerate(results)])[1]


def blocks(section: Section, kind: type) -> dict[str, Any]:
    return {block.title: block for block in section.blocks if isinstance(block, kind)}


def told(cells: Any) -> str:
    return "".join(cell if isinstance(cell, str) else cell.text for cell in cells)


def test_what_is_left_by_role_and_in_all() -> None:
    (section,) = sections(data())
    table: Table = blocks(section, Table)["What is left, by role"]
    # q: (24 + 12) / 64; v: (32 + 12) / 64
    assert [list(row) for row in table.rows] == [
        ["q", "2", "4", "1 to 2", "0", "56.2 %"],
        ["v", "2", "4", "1", "1", "68.8 %"],
    ]
    first, second, third = (told(block.cells) for block in section.blocks[:3])  # type: ignore[union-attr]
    assert first == (
        "50.0 % of the parameters of 4 matrices are left, chosen on 40 rows. Stored dense, since factors "
        "would not be smaller: 0.v."
    )
    assert "63.0 % are left; with nothing left of these matrices it would be 26.0 %." in second
    assert third == (
        "On 6,000 tokens of text that was not learnt the loss was 1.2500 before and is 2.5000 nats a token."
    )


def test_the_map_shows_what_is_kept() -> None:
    (section,) = sections(data(matrices=[matrix("q", 0, 2), matrix("q", 0, 1), matrix("v", 1, None)]))
    chart: Chart = blocks(section, Chart)["Share of each matrix that is kept"]
    assert chart.table is not None
    assert [list(row) for row in chart.table.rows] == [["0", "56.2 %", ""], ["1", "", "100.0 %"]]


def test_bases_fall_at_events_alone() -> None:
    (section,) = sections(data())
    chart: Chart = blocks(section, Chart)["Bases by role"]
    assert list(chart.marks) == [
        "q: 4 bases at first, 1.5 after the last event",
        "v: 4 bases at first, 2.5 after the last event",
    ]
    line = chart.svg.split('points="')[1].split('"')[0].split()
    points = [tuple(map(float, pair.split(","))) for pair in line]
    # At steps 0, 3, 5, 6: 4, 2.5 and 1.5 bases.
    assert [len({x for x, _ in points}), len({y for _, y in points})] == [4, 3]


def test_losses_say_the_state_that_was_taken() -> None:
    (section,) = sections(data())
    charts = blocks(section, Chart)
    first, second = charts["Loss while weights are learnt"], charts["Loss of the factors"]
    assert first.marks[0] == "learnt: 3.0000 in the first step, 2.0000 in the last"
    assert second.marks[0] == "learnt: 2.0000 in the first step, 1.0000 in the last"
    assert first.marks[1] == "rows that are not learnt: 2.2500 in the state that was taken"
    assert second.marks[1] == "rows that are not learnt: 1.5000 in the state that was taken"
    upright = [line for line in first.svg.split("<line ")[1:] if 'class="event"' in line]
    assert len(upright) == 2 + 2 and 'class="event"' in second.svg  # two events, and the lines to two names


def test_weights_and_what_excites_the_moved() -> None:
    (section,) = sections(data())
    chart: Chart = blocks(section, Chart)["Weights of 0.q"]
    assert list(chart.marks) == [
        "2 bases stayed; the weight of 2 rose, of 0 it did not",
        "2 of 4 bases were dropped",
    ]
    tables = blocks(section, Table)
    (gained,) = tables["Bases that gained most weight"].rows
    (lost,) = tables["Bases that lost most weight"].rows
    assert [told([cell]) for cell in gained] == [
        "0.q, no. 3",
        "1.5",
        "2.5",
        '"PRIVATE"',
        "left [PRIVATE] right",
    ]
    assert [told([cell]) for cell in lost] == ["0.q, no. 2", "3", "dropped", "", ""]


def test_data_of_an_earlier_version_are_drawn() -> None:
    old = data()
    for key in ("moved", "gained", "lost", "text", "keep_model", "least_keep_model"):
        del old[key]
    del old["weights"]["held_out"], old["factors"]["held_out"]
    (section,) = sections(old)
    assert len(blocks(section, Chart)) == 4


def model(where: Path, told: dict[str, Any]) -> Path:
    where.mkdir()
    step = {
        "method": "basel",
        "version": "1",
        "config": {},
        "data_hash": "0" * 64,
        "notes": [],
        "scores": {},
    }
    base = {"name": "base", "hash": "0" * 64}
    lineage = {"format_version": 1, "base": base, "steps": [step], "files": {}}
    (where / "kanna.json").write_text(json.dumps(lineage))
    (where / "kanna-basel.json").write_text(json.dumps(told))
    return where


def test_runs_on_the_same_rows_are_set_side_by_side(tmp_path: Path) -> None:
    places = [
        model(tmp_path / "a", data(held_out_hash="one")),
        model(tmp_path / "b", data(held_out_hash="one", keep_selected=0.25, weights=None, events=[])),
        model(tmp_path / "c", data(held_out_hash="other", keep_selected=0.75)),
    ]
    made = kanna.report(places, tmp_path / "p.html")
    text = made.markdown.read_text()
    section = text.split("## Basel of base: runs on the same rows")[1].split("\n## ")[0]
    assert "| a | fisher | 50.0 % | 63.0 % | 1.5000 |" in section
    assert "| b | factors that were there | 25.0 % | 63.0 % | 1.5000 |" in section
    assert "75.0 %" not in section  # held out other rows: its loss says nothing here


@pytest.mark.parametrize("examples", [True, False])
def test_words_of_rows_can_be_left_out(examples: bool, tmp_path: Path) -> None:
    place = model(tmp_path / "a", data())
    made = report([place], tmp_path / "p.html", views=VIEWS, examples=examples)
    for file in (made.html, made.markdown):
        assert ("PRIVATE" in file.read_text()) is examples
