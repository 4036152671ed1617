"""Drawings say what their numbers say."""

import itertools
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kanna.reporting.charts import Bar, Dot, forest, scatter, ticks

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_round_and_inside(low, width):
    high = low + width
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    for step in steps:
        lead = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(lead - round_) for round_ in (1, 2, 5, 10)) < 1e-3


def test_no_range_has_no_ticks():
    with pytest.raises(ValueError, match="no range"):
        ticks(1.0, 1.0)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def of_kind(svg, tag, kind):
    return [one for one in parsed(svg).iter(f"{SVG}{tag}") if one.get("class") == kind]


def marks(svg):
    return [one for one in parsed(svg).iter(f"{SVG}g") if "mark" in (one.get("class") or "")]


def circle(mark):
    return next(one for one in mark.iter(f"{SVG}circle") if one.get("class") is None)


def test_a_bar_lies_between_base_and_limit_as_its_numbers_do():
    svg = forest([Bar("q", 0.25, -0.1, 0.6, "pass", "tip")])
    zero, limit = (float(of_kind(svg, "line", kind)[0].get("x1")) for kind in ("zero", "limit"))
    (bar,) = marks(svg)
    assert float(circle(bar).get("cx")) == pytest.approx(zero + 0.25 * (limit - zero), abs=0.2)
    line = next(bar.iter(f"{SVG}line"))
    ends = [(float(line.get(key)) - zero) / (limit - zero) for key in ("x1", "x2")]
    assert ends == pytest.approx([-0.1, 0.6], abs=2e-3)
    assert not of_kind(svg, "path", "arrow")


def test_what_lies_far_outside_is_an_arrow_and_a_number():
    svg = forest([Bar("q", 18.64, 14.2, 23.9, "fail", "tip"), Bar("r", -9.0, -9.9, -8.0, "pass", "tip")])
    assert len(of_kind(svg, "path", "arrow")) == 4
    said = "".join(parsed(svg).itertext())
    assert "1,864 %" in said and "-900 %" in said
    assert all(0 <= float(circle(mark).get("cx")) <= 360 for mark in marks(svg))


def test_dots_are_in_the_order_of_their_numbers():
    numbers = [(2.0, 0.9), (1.0, 0.5), (3.0, 0.7)]
    dots = [Dot(f"m{i}", x, y, y - 0.01, y + 0.01, "", "tip") for i, (x, y) in enumerate(numbers)]
    svg = scatter(dots, "across", "up", percent=True)
    places = [(float(circle(mark).get("cx")), float(circle(mark).get("cy"))) for mark in marks(svg)]
    assert sorted(range(3), key=lambda i: places[i][0]) == [1, 0, 2]
    assert sorted(range(3), key=lambda i: -places[i][1]) == [1, 2, 0]


def test_labels_cover_neither_each_other_nor_the_edge():
    dots = [Dot(f"model-{i}" * 3, 1.0 + 0.001 * i, 0.5, 0.5, 0.5, "pass", "tip") for i in range(6)]
    svg = scatter([*dots, Dot("日本語" * 20, 3.0, 0.4, 0.4, 0.4, "", "tip")], "across", "up")
    assert len(marks(svg)) == 7
    labels = of_kind(svg, "text", "label")
    assert 1 <= len(labels) < 7
    boxes = []
    for one in labels:
        wide = sum(13 if ord(letter) > 0x2E80 else 6.4 for letter in one.text)
        boxes.append((float(one.get("x")), float(one.get("x")) + wide, float(one.get("y"))))
    assert all(left >= 0 and right <= 361 for left, right, _ in boxes)
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 13


def test_labels_cover_neither_whiskers_nor_the_numbers_of_the_axis():
    """Two models at each of two places: there is no room for a name to the left."""
    dots = [Dot("model", 0.5, 0.9, 0.05, 0.95, "", "tip"), Dot("other", 0.5, 0.9, 0.9, 0.9, "", "tip")]
    dots += [Dot("near", 0.6, 0.4, 0.4, 0.4, "", "tip"), Dot("nearer", 0.6, 0.4, 0.4, 0.4, "", "tip")]
    svg = scatter([*dots, Dot("far", 2.0, 0.6, 0.6, 0.6, "", "tip")], "across", "up")
    labels = of_kind(svg, "text", "label")
    ticks = [float(one.get("x")) for one in of_kind(svg, "text", "tick") if one.get("text-anchor") == "end"]
    (whisker,) = [float(one.get("x1")) for one in of_kind(svg, "line", "interval")]
    assert [one.text for one in labels] == ["model", "other", "near", "nearer", "far"]
    for one in labels:
        left = float(one.get("x"))
        assert left > max(ticks) and not left < whisker < left + 6.4 * len(one.text), one.text


def test_text_in_a_drawing_is_escaped():
    evil = "\"><script>x</script>'&"
    for svg in (
        forest([Bar(evil, 0.1, 0.0, 0.2, "pass", evil)]),
        scatter([Dot(evil, 1, 1, 1, 1, "", evil)], evil, evil),
    ):
        assert not re.search(r"<script", svg)
        (mark,) = marks(svg)
        assert mark.get("data-tip") == mark.get("aria-label") == evil
        assert evil in "".join(parsed(svg).itertext())


def test_an_interval_across_is_drawn_and_what_is_far_out_is_cut() -> None:
    one = Dot("one", 1.0, 0.5, 0.5, 0.5, "pass", "t", (0.9, 1.1))
    wild = replace(one, label="two", x=1.2, y=0.6, low=0.6, high=0.6, side=(0.5, 40.0))
    drawn = scatter([one, wild], "ms", "acc")
    lines = [
        tuple(map(float, found))
        for found in re.findall(
            r'class="interval" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', drawn
        )
    ]
    assert len(lines) == 2 and all(y1 == y2 for _, y1, _, y2 in lines)
    (left, _, right, _), (_, _, end, _) = lines
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="6"', drawn)]
    assert left < dots[0] < right and end <= 360
    assert dots[1] - dots[0] > 30, "a wild interval would squeeze the dots into one"
