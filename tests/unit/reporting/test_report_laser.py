"""What a report says of edits: maps, choice, test, stages and answers, against the results themselves."""

import copy
import csv
import itertools
import random
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
import report_laser_samples as laser
from report_samples import lineage, write, write_model

from kanna.errors import InputError
from kanna.methods.laser.choose import choose
from kanna.methods.laser.report import VIEWS
from kanna.methods.laser.report.search import search
from kanna.recipe.report import report
from kanna.reporting.blocks import At, Chart
from kanna.reporting.heatmap import Axis, Tile, brief, depth, heatmap
from kanna.reporting.sources import read_sources

SVG = "{http://www.w3.org/2000/svg}"


def maps(data):
    return [block for block in search(At("s", data), "title").blocks if isinstance(block, Chart)]


def boxes(svg, kind):
    return [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("class") == kind]


def tiles(svg):
    """(row, column) -> (colour, opacity, ring, framed, tip)"""
    found = {}
    for mark in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        kinds = [one.get("class") for one in mark]
        colours = [one for one in mark if one.get("class") in ("gain", "loss")]
        shown = (
            (colours[0].get("class"), float(colours[0].get("fill-opacity", 1))) if colours else (None, None)
        )
        place = int(mark.get("data-row")), int(mark.get("data-column"))
        found[place] = (*shown, "ring" in kinds, "frame chosen" in kinds, mark.get("data-tip"))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_map_has_every_trial_at_its_place(seed):
    data = laser.search(laser.grid(seed), (0.01, 0.05))
    most = max(abs(one["accuracy"] - data["base"]["accuracy"]) for one in data["trials"])
    assert [chart.title.split(": ")[1] for chart in maps(data)] == list(laser.ROLES)
    for role, chart in zip(laser.ROLES, maps(data), strict=True):
        found = tiles(chart.svg)
        assert len(found) == laser.LAYERS * len(laser.RHOS) and not boxes(chart.svg, "none")
        for one in data["trials"]:
            if one["role"] != role:
                continue
            colour, opacity, ring, framed, tip = found[one["layer"], laser.RHOS.index(one["rho"])]
            step = one["accuracy"] - data["base"]["accuracy"]
            assert colour == ("gain" if step > 0 else "loss") and not ring
            assert opacity == pytest.approx((abs(step) / most) ** 0.5, abs=6e-4)
            assert framed == (one["edit"] == data["chosen"]["edit"])
            said = (f"{100 * one['accuracy']:.2f} %", f"{100 * step:+.2f} pt", f"rank {one['rank']}",
                    f"{one['log_loss']:.4f}", f"{100 * one['consistency']:.2f} %")  # fmt: skip
            assert tip.startswith(one["edit"]) and all(part in tip for part in said)


def test_what_was_not_tried_is_empty_and_what_was_dropped_is_a_ring():
    trials = [laser.trial("up", 2, "0.1", 0.24), laser.trial("up", 0, "0.9", 0.6, rows=25)]
    (chart,) = maps(laser.search(trials, (-0.1, -0.01)))
    found = tiles(chart.svg)
    assert found.keys() == {(2, 2), (0, 0)}
    assert len(boxes(chart.svg, "none")) == laser.LAYERS * len(laser.RHOS) - 2
    # 0.6 of 25 rows says little beside 0.25 of 500: no colour, no difference.
    assert (
        found[0, 0][:3] == (None, None, True)
        and "25 rows only" in found[0, 0][4]
        and "pt" not in found[0, 0][4]
    )
    assert found[2, 2][:2] == ("loss", 1.0) and found[2, 2][3]
    assert chart.table is not None
    assert [row[0] for row in chart.table.rows] == ["0", "2"]
    assert "Empty" in chart.caption and "ring" in chart.caption and "tested, not chosen" in chart.caption


def test_experts_of_a_layer_share_a_tile():
    trials = [laser.trial("up", 1, "0.1", value) for value in (0.2, 0.3, 0.1)]
    (chart,) = maps(laser.search(trials, (0.1, 0.2)))
    ((_, (colour, _, _, _, tip)),) = tiles(chart.svg).items()
    assert colour == "gain" and "30.00 %" in tip and "best of 3" in tip


def test_blocks_of_rows_have_maps_of_their_own():
    trials = [laser.trial("up", 1, "0.1", 0.3), laser.trial("up", 1, "0.1", 0.35, blocks=4)]
    one, other = maps(laser.search(trials, (0.1, 0.2)))
    assert "4 row blocks" in other.title and "blocks" not in one.title
    assert (tiles(one.svg)[1, 2][3], tiles(other.svg)[1, 2][3]) == (False, True)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 9), (32, 9), (80, 40)])
def test_a_map_stays_within_its_drawing(rows, columns):
    draw = random.Random(rows)
    every = [(i, j) for i in range(rows) for j in range(columns)]
    made = [Tile(i, j, draw.uniform(-9, 9), "tip") for i, j in draw.sample(every, (len(every) + 1) // 2)]
    made[0] = Tile(made[0].row, made[0].column, float("nan"), "tip")
    names = Axis("layer", [str(i) for i in range(rows)]), Axis("rho", ["0.005"] * columns)
    svg = heatmap("name", *names, made, 9.0, "points")
    high = float(ElementTree.fromstring(svg).get("viewBox").split()[3])
    for kind in ("ground", "gain", "loss", "none"):
        for box in boxes(svg, kind):
            x, y, wide, tall = (float(box.get(key)) for key in ("x", "y", "width", "height"))
            assert 0 <= x < x + wide <= 360.1 and 0 <= y < y + tall <= high and wide > 0 and tall > 0
    assert len(tiles(svg)) == len(made) and sum(ring for _, _, ring, _, _ in tiles(svg).values()) == 1
    places = [one.get("tabindex") for one in ElementTree.fromstring(svg).iter(f"{SVG}g")]
    assert Counter(places)["0"] == 1
    labels = [
        float(one.get("x")) for one in ElementTree.fromstring(svg).iter(f"{SVG}text") if one.text == "0.005"
    ]
    assert all(b - a >= 30 for a, b in itertools.pairwise(labels))


def test_small_gains_can_be_seen_beside_great_losses():
    assert depth(-9, 9) == depth(20, 9) == 1 and depth(0, 9) == 0
    assert depth(0.09, 9) == pytest.approx(0.1)
    assert [brief(one) for one in (1.44, -0.04, -9.94, -9.96, 20.5, -100.0)] == [
        "+1.4", "0", "-9.9", "-10", "+20", "-100",
    ]  # fmt: skip


def said(tmp_path, *sources):
    """Verdicts and the Markdown."""
    result = report(sources, tmp_path / "p.html", force=True)
    return dict(result.verdicts), result.markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("interval", "status"),
    [((0.001, 0.06), "better"), ((-0.01, 0.07), "no clear difference"), ((-0.06, -0.001), "worse")],
)
def test_the_verdict_is_what_the_test_rows_say(tmp_path, interval, status):
    source = write(tmp_path / "S", **{"laser-search": laser.search(laser.grid(4), interval)})
    verdicts, text = said(tmp_path, source)
    assert verdicts == {"LASER search of base on facts.jsonl": status}
    first = text.split("\n## ")[0]
    low, high = (f"{100 * end:+.2f} pt" for end in interval)
    assert f"**+3.12 pt** (greedy 25.00 % → 28.12 % on 2,001 test rows; interval {low} to {high})" in first
    assert "up:2:0.1, which leaves rank 6" in first


def test_no_edit_is_said_where_the_model_as_it_is_wins(tmp_path):
    beaten = laser.search(laser.grid(4, best=0.24), (-0.02, 0.01))
    verdicts, text = said(tmp_path, write(tmp_path / "S", **{"laser-search": beaten}))
    assert set(verdicts.values()) == {"no edit"} and "**No edit is better**" in text
    assert "None of 48 candidates has a higher validation score" in text


def test_a_limit_that_keeps_a_better_edit_out_is_not_called_no_edit_is_better(tmp_path):
    trials = [laser.trial("up", 2, "0.1", 0.3, consistency=0.1)]
    kept_out = laser.search(trials, (0.01, 0.05))
    assert kept_out["base_wins"]
    verdicts, text = said(tmp_path, write(tmp_path / "S", **{"laser-search": kept_out}))
    assert set(verdicts.values()) == {"no edit"}
    assert "**No edit keeps the limits**" in text and "No edit is better" not in text
    assert "the most accurate one, up:2:0.1, on test rows: +3.12 pt, interval +1.00 pt to +5.00 pt" in text


def test_a_search_that_tried_nothing_whole(tmp_path):
    data = laser.search([laser.trial("up", 2, "0.1", 0.3, rows=25)])
    assert "No candidate was tried on all validation rows" in said(tmp_path, write(tmp_path / "S", a=data))[1]
    assert "No candidate" in said(tmp_path, write(tmp_path / "T", a=laser.search([])))[1]


@pytest.mark.parametrize("rule", ["published", "constrained"])
def test_the_tested_edit_is_the_one_that_the_rule_takes(rule):
    from kanna.methods.laser.report.search import best

    for seed in range(5):
        trials = laser.grid(seed, best=0.4 if seed % 2 else 0.2)
        data = laser.search(trials, (0, 0.1), settings={"rule": rule})
        found, _ = choose(laser.base_trial(), trials, rule)
        shown = found.edit or max(trials, key=lambda one: (one.accuracy, -one.log_loss)).edit
        assert data["trials"][best(data)]["edit"] == shown == data["test"]["edits"][0]


def table(text, heading):
    """Rows of a Markdown table, without its head."""
    lines = text.split(f"### {heading}")[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_controls_and_keys_stand_beside_the_edit(tmp_path):
    _, text = said(tmp_path, write(tmp_path / "S", a=laser.search(laser.grid(4), (0.01, 0.05))))
    assert table(text, "On 2,001 test rows") == [
        ["as it is", "25.00 %", "", "2.5123", "25.00 %"],
        ["up:2:0.1", "28.12 %", "+3.12 pt", "2.5123", "25.00 %"],
        ["magnitude pruning, same size", "24.00 %", "-1.00 pt", "2.5123", "25.00 %"],
        ["random components, same size", "12.50 %", "-12.50 pt", "2.5123", "25.00 %"],
        ["always the commonest answer", "6.25 %", "", "", ""],
    ]
    # Numbers go by size, though JSON has them as texts.
    assert [row[:3] for row in table(text, "On test rows, by frequency")] == [
        ["2", "40", "12.50 %"], ["6", "40", "25.00 %"], ["16", "40", "50.00 %"],
    ]  # fmt: skip


def test_a_composition_shows_its_stages(tmp_path):
    verdicts, text = said(tmp_path, write(tmp_path / "C", c=laser.composition(2)))
    assert verdicts == {"LASER composition of base on facts.jsonl": "better"}
    rows = table(text, "Stages, on 500 validation rows")
    assert [row[:3] for row in rows] == [
        ["0", "as it is", ""], ["1", "down:3:0.1", "accepted"], ["2", "down:2:0.1", "accepted"],
        ["", "down:1:0.1", "rejected"],
    ]  # fmt: skip
    assert "2 of 3 edits tried were accepted: down:3:0.1 + down:2:0.1." in text
    assert "Perplexity of plain text: 75.72 → 76.09." in text
    verdicts, text = said(tmp_path, write(tmp_path / "N", c=laser.composition(0)))
    assert set(verdicts.values()) == {"no edit"} and "**No edit is better**" in text


@pytest.mark.parametrize(("stage", "status"), [(0, "not judged"), (1, "not judged"), (2, "better")])
def test_a_stage_is_not_judged_by_the_test_of_the_whole(tmp_path, stage, status):
    model = write_model(tmp_path / "m", lineage({"stage": stage}), stages=laser.composition(2))
    verdicts, text = said(tmp_path, model)
    assert set(verdicts.values()) == {status}
    assert (f"The model holds stage {stage}, which was not tested." in text) == (stage < 2)


def test_an_analysis_sets_answers_side_by_side(tmp_path):
    verdicts, text = said(tmp_path, write(tmp_path / "A", a=laser.analysis("who")))
    assert verdicts == {"LASER analysis of base on who": "no clear difference"}
    assert table(text, "What kept and removed") == [
        ["gained", "whowho", "who", "base who", "top who", "bottom who"]
    ]
    assert table(text, "Free text, side by side")[0] == ["who", "base who", "edited who"]
    assert [row[:2] for row in table(text, "On all 2,500 rows")][:3] == [
        ["as it is", "20.44 %"], ["edited", "20.88 %"], ["removed components alone", "10.00 %"],
    ]  # fmt: skip
    assert table(text, "Spectra")[0][2:6] == ["25", "256", "211.9", "43.6 %"]
    assert "signal to noise" not in text and "and 50 more that changed" in text


def test_texts_of_an_analysis_are_left_out_on_request(tmp_path):
    private = {key: laser.analysis("PRIVATE")[key] for key in ("answers", "samples")}
    source = write(tmp_path / "A", a=laser.analysis("task") | private)
    shown = report([source], tmp_path / "with.html")
    hidden = report([source], tmp_path / "without.html", examples=False)
    assert "PRIVATE" in shown.html.read_text() and "PRIVATE" in shown.markdown.read_text()
    for path in (hidden.html, hidden.markdown):
        assert "PRIVATE" not in path.read_text()
    assert "59.2 %" in hidden.markdown.read_text()


def test_trials_are_a_table_of_their_own(tmp_path):
    dropped = laser.trial("up", 2, "0.4", 0.6, rows=25)
    data = laser.search([*laser.grid(4), dropped], (0.01, 0.05))
    model = write_model(tmp_path / "m", lineage(), search=data)
    result = report([model, write(tmp_path / "S", a=data)], tmp_path / "p.html")
    assert result.trials == tmp_path / "p-trials.csv"
    assert result.to_dict()["trials"] == str(result.trials)
    with result.trials.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["search"] for row in rows) == {"m#/search": 50, "S/a.json#": 50}
    assert [row["edit"] for row in rows if row["chosen"] == "1"] == ["up:2:0.1", "up:2:0.1"]
    base, *trials = rows[:50]
    assert base["edit"] == "" and float(base["value"]) == 0.25
    for row, one in zip(trials, data["trials"], strict=True):
        assert (row["edit"], int(row["rank"]), float(row["value"])) == (
            one["edit"],
            one["rank"],
            one["accuracy"],
        )
        assert row["change"] == ("" if one["rows"] == 25 else str(one["accuracy"] - 0.25))
    with pytest.raises(InputError, match=r"p-trials\.csv exists already"):
        for path in (result.html, result.markdown):
            path.unlink()
        report([model], tmp_path / "p.html")
    assert not result.html.exists()


def test_a_search_is_read_from_a_model_a_folder_or_alone(tmp_path):
    data = laser.search(laser.grid(4), (0.01, 0.05))
    model = write_model(tmp_path / "m", lineage(), search=data, stages=laser.composition())
    folder = write(tmp_path / "bare", **{"laser-search": data})
    found = read_sources([model, folder / "laser-search.json"], VIEWS)
    assert [(one.name, one.kind) for one in found] == [
        ("m", "model"),
        ("bare/laser-search.json", "laser-search"),
    ]
    assert found[0].data["search"] == found[1].data == data
    titles = list(report([model, folder], tmp_path / "p.html").verdicts)
    assert titles == [
        "LASER search of base on facts.jsonl (m#/search)",
        "LASER search of base on facts.jsonl (bare/laser-search.json#)",
        "LASER composition of base on facts.jsonl",
    ]


@pytest.mark.parametrize(
    ("make", "change", "where"),
    [
        (lambda: laser.search(laser.grid(4), (0, 1)), lambda d: d["test"].pop("edits"), r"test\.edits"),
        (lambda: laser.search(laser.grid(4)), lambda d: d["trials"][3].update(rank="6"), r"trials\.3\.rank"),
        (lambda: laser.search(laser.grid(4)), lambda d: d.update(layers=0), "layers"),
        (lambda: laser.search(laser.grid(4)), lambda d: d["settings"].update(rhos=[]), r"settings\.rhos"),
        (lambda: laser.search(laser.grid(4)), lambda d: d.update(schema_version=2), "upgrade kanna"),
        (laser.composition, lambda d: d["stages"][0].pop("accepted"), r"stages\.0\.accepted"),
        (lambda: laser.analysis("a"), lambda d: d["answers"][0].pop("bottom"), r"answers\.0\.bottom"),
    ],
)
def test_a_damaged_result_is_refused_by_name_also_in_a_model(tmp_path, make, change, where):
    data = copy.deepcopy(make())
    change(data)
    source = write(tmp_path / "S", bad=data)
    with pytest.raises(InputError, match=where) as error:
        report([source], tmp_path / "p.html")
    assert "bad.json" in str(error.value) and not (tmp_path / "p.html").exists()
    if data["kind"] == "laser-search":
        model = write_model(tmp_path / "m", lineage(), search=data)
        with pytest.raises(InputError, match=where) as error:
            report([model], tmp_path / "p.html")
        assert re.search(r"m/laser-search\.json", str(error.value))
