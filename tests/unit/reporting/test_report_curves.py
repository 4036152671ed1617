"""Lines over time, and many points, say what their numbers say."""

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kanna.reporting.curves import Curve, apart, curves, smoothed
from kanna.reporting.heatmap import Axis, Tile, heatmap
from kanna.reporting.points import points

SVG = "{http://www.w3.org/2000/svg}"


def parts(svg, tag, kind=None):
    every = ElementTree.fromstring(svg).iter(f"{SVG}{tag}")
    return [one for one in every if kind is None or one.get("class") == kind]


def test_names_are_moved_as_little_as_they_must():
    assert apart([10, 100], 13, 0, 200) == [10, 100]
    assert apart([100, 100, 100], 10, 0, 200) == [90, 100, 110]  # around the place, not all below it
    assert apart([104, 100, 50], 10, 0, 200) == [107, 97, 50]  # of two that are too near, both give way
    assert apart([199, 198], 10, 0, 200) == [200, 190]  # the order stays, within the drawing
    assert apart([], 10, 0, 200) == []


def test_a_short_run_ends_where_it_ended_and_a_long_one_is_smooth():
    """An average over ten steps of a run of twelve would be mostly its beginning."""
    assert smoothed([0.0] * 4 + [1.0] * 6) == [0.0] * 4 + [1.0] * 6
    short = smoothed([0.0] * 6 + [1.0] * 14)  # over two steps
    assert short[5:8] == [0.0, 0.5, 0.75] and short[-1] > 0.999
    long = smoothed([0.0] * 100 + [1.0] * 100)  # over ten
    assert long[100:102] == pytest.approx([0.1, 0.19]) and smoothed([]) == []


@given(st.lists(st.floats(0, 200), min_size=1, max_size=14))
def test_names_never_touch_and_stay_inside(places):
    moved = apart(places, 13, 0, 200)
    ordered = sorted(moved)
    assert all(b - a >= 13 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 200 + 1e-6
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            assert not (one < other and moved[i] > moved[j])


def test_a_line_goes_where_its_points_lie_and_marks_stand_at_their_steps():
    svg = curves([Curve("a", [(0, 1.0), (5, 3.0), (10, 2.0)], "tip")], "steps", "loss", [5.0])
    (line,) = parts(svg, "polyline")
    way = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = way[:3]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y2 == pytest.approx((y0 + y1) / 2, abs=0.2)
    assert y1 < y2 < y0  # up is more
    marks = [one for one in parts(svg, "line", "event") if one.get("x1") == one.get("x2")]
    assert [float(one.get("x1")) for one in marks] == [pytest.approx(x1, abs=0.1)]


def test_one_point_is_a_dot():
    svg = curves([Curve("a", [(4, 2.0)], "tip")], "steps", "loss")
    assert len(parts(svg, "circle")) == 1
    assert not parts(curves([Curve("a", [(4, 2.0), (5, 1.0)], "tip")], "steps", "loss"), "circle")


def test_points_lie_by_both_numbers_and_what_is_gone_on_the_axis():
    svg = points([(4.0, 2.0), (2.0, 2.0), (3.0, 0.0)], "before", "after", ("two stay", "one is gone"))
    same = parts(svg, "line", "same")[0]
    left, bottom = float(same.get("x1")), float(same.get("y1"))
    right, top = float(same.get("x2")), float(same.get("y2"))  # both numbers are 4 there
    stays = [(float(one.get("cx")), float(one.get("cy"))) for one in parts(svg, "circle", "stays")]
    shares = [((x - left) / (right - left), (bottom - y) / (bottom - top)) for x, y in stays]
    assert shares == [pytest.approx((1.0, 0.5), abs=2e-3), pytest.approx((0.5, 0.5), abs=2e-3)]
    (gone,) = parts(svg, "line", "gone")
    assert (float(gone.get("x1")) - left) / (right - left) == pytest.approx(0.75, abs=2e-3)
    assert float(gone.get("y2")) == bottom
    tips = [one.get("data-tip") for one in parts(svg, "g")]
    assert tips == ["two stay", "one is gone"]


def test_very_many_points_are_some():
    svg = points([(float(i + 1), 1.0) for i in range(3000)], "before", "after", ("stay", "gone"))
    assert len(parts(svg, "circle", "stays")) == 375
    points([], "before", "after", ("", ""))


def test_a_map_of_shares_has_no_signs_and_one_colour():
    axes = Axis("layer", ["0"]), Axis("role", ["q", "k", "v"])
    tiles = [Tile(0, 0, 100.0, "a"), Tile(0, 1, 25.0, "b"), Tile(0, 2, 2.1, "c")]
    svg = heatmap("name", *axes, tiles, 100.0, "%", signed=False)
    words = [one.text for one in parts(svg, "text", "heat ink")]
    assert words == ["100", "25", "2.1"]
    filled = [one for group in parts(svg, "g") for one in group if one.get("class") == "gain"]
    shown = [one.get("fill-opacity") for one in filled]
    assert shown == [None, "0.250", "0.021"]
    scale = [one.text for one in parts(svg, "text", "heat")][-10:]
    assert scale == ["0", "12", "25", "38", "50", "62", "75", "88", "100", "%"]
