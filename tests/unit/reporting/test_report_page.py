"""The page in a real browser, and what a reader without one can check of it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import CJK, EVIL, everything

from kanna.recipe.report import report

UNITS = {
    "": 1.0, "%": 0.01, "pt": 0.01, "x": 1.0, "EUR": 1.0, "million tokens": 1e6, "s": 1.0, "ms": 1e-3,
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "MB/s": 1e6, "GB/s": 1e9,
}  # fmt: skip
NUMBER = re.compile(r"([-+]?)([\d,]+)(?:\.(\d+))?(?:e([-+]\d+))?")
# Loads the page as a phone shows it, uses it, and says what it found.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><title>probe</title>
<iframe id="phone" src="page.html" width="360" height="740" style="border:0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("phone").addEventListener("load", (event) => {
  const view = event.target.contentWindow, page = view.document, tip = page.getElementById("tip");
  const all = (query) => [...page.querySelectorAll(query)];
  const texts = (query) => all(query).map((one) => one.textContent);
  const figures = all("data").map((one) => [one.dataset.source, one.value, one.textContent]);
  const mark = page.querySelector("[data-tip]");
  const quiet = tip.hidden;
  mark.focus({ preventScroll: true });
  const told = tip.hidden ? null : tip.textContent;
  view.dispatchEvent(new Event("scroll"));
  const stays = !tip.hidden;
  page.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape" }));
  const gone = tip.hidden;
  mark.dispatchEvent(new view.PointerEvent("pointerenter", { pointerType: "mouse" }));
  const hovered = tip.hidden ? null : tip.textContent;
  page.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape" }));
  const walk = [];
  all("[data-tip^='up:2:0.1,'], [data-tip^='up:2:0.1:']")[0].focus({ preventScroll: true });
  for (const key of ["", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"]) {
    page.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", { key, bubbles: true }));
    walk.push(tip.textContent.replace(/: .*/s, ""));
  }
  const rules = [...page.styleSheets[0].cssRules];
  const colours = (rule) => ["--ink", "--gain", "--loss"].map((name) => rule.style.getPropertyValue(name));
  const light = colours(rules.find((rule) => rule.selectorText === ":root"));
  const dark = colours(rules.find((rule) => rule.media?.mediaText.includes("dark")).cssRules[0]);
  const maps = all("svg").filter((one) => one.querySelector("[data-row]"));
  const stops = all("[data-row][tabindex='0']").length;
  const boxes = all(".scroll").filter((one) => one.scrollWidth > one.clientWidth).length;
  const closed = page.querySelectorAll("details:not([open])").length;
  view.dispatchEvent(new Event("beforeprint"));
  document.getElementById("found").textContent = JSON.stringify({
    said_wide: all("figure.wide").filter((one) =>
      view.getComputedStyle(one.querySelector("figcaption"), "::after").content.includes("scroll")).length,
    walk, light, dark, stops, maps: maps.length, figures, quiet, told, stays, gone, hovered, boxes, closed,
    said: mark.dataset.tip,
    open: page.querySelectorAll("details[open]").length,
    wide: page.documentElement.scrollWidth, room: page.documentElement.clientWidth,
    hacked: view.hacked ?? null, images: page.images.length, scripts: page.scripts.length,
    prompts: texts(".prompt"), verdicts: texts(".verdict .status strong"), headlines: texts(".headline"),
    evidence: texts(".evidence b"), natures: texts("figure .nature"),
    data: JSON.parse(page.getElementById("data").textContent),
    paper: view.getComputedStyle(page.body).backgroundColor,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources and page.html."""
    place = tmp_path_factory.mktemp("report")
    report(everything(place), place / "page.html", title=EVIL)
    return place


@pytest.fixture(scope="module")
def browser(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """What the probe found, and what the browser logged. One start for all tests."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome to look at the page with")
    (made / "probe.html").write_text(PROBE, encoding="utf-8")
    profile = tmp_path_factory.mktemp("profile")
    words = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
        f"--user-data-dir={profile}", "--enable-logging=stderr", "--hide-scrollbars",
        "--virtual-time-budget=3000", "--dump-dom", (made / "probe.html").as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, encoding="utf-8")
    found = re.search(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found and found[1], ran.stderr
    parser = _Text()
    parser.feed(found[1])
    return json.loads("".join(parser.texts)), ran.stderr


class _Text(HTMLParser):
    """Text with its entities resolved, and the attributes of all elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs


def at(place: Path, source: str) -> float:
    """The number that a source names, read from the file itself."""
    for sign, combine in ((" / ", float.__truediv__), (" - ", float.__sub__)):
        one, found, other = source.partition(sign)
        if found and "#" in one:
            return combine(at(place, one), at(place, other))
    name, _, pointer = source.partition("#")
    path = place / name
    if path.is_dir():
        run = path.with_name(f"{path.name}.run.json")
        files = {"lineage": path / "kanna.json", "run": run}
        files |= {key: path / f"laser-{key}.json" for key in ("search", "stages")}
        data = {key: json.loads(file.read_text()) for key, file in files.items()}
    else:
        data = json.loads(path.read_text())
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        data = data[int(key)] if isinstance(data, list) else data[key]
    return float(data)


def agrees(text: str, value: float) -> bool:
    """Whether a number as people read it is the value, rounded where it is cut."""
    if text == "same size":
        return abs(value - 1) < 5e-4
    if text.lstrip("+") in ("inf", "nan"):
        return repr(value) == text.lstrip("+")
    if found := re.fullmatch(r"(\d+):(\d\d) min", text):
        return 0 <= value - 60 * int(found[1]) - int(found[2]) < 1
    number = NUMBER.match(text)
    assert number, text
    unit = text[number.end() :].strip()
    if unit in ("% smaller", "% larger"):
        value, unit = abs(1 - value), "%"
    if unit in (
        "% cheaper",
        "% dearer",
    ):  # what a token costs falls as its time does, of which this is the ratio
        value, unit = abs(1 - 1 / value), "%"
    scale = UNITS[unit] * 10.0 ** int(number[4] or 0)
    decimals = number[3] or ""
    read = float(f"{number[1]}{number[2].replace(',', '')}.{decimals or 0}") * scale
    return abs(read - value) <= 0.5 * 10.0 ** -len(decimals) * scale * (1 + 1e-6)


def test_the_check_of_shown_numbers_can_fail():
    assert agrees("80.65 %", 0.806451) and not agrees("80.66 %", 0.806451)
    assert agrees("18.4 % smaller", 1_746_458 / 2_139_648) and not agrees("81.6 % smaller", 0.816)
    assert agrees("32.9 % cheaper", 1.49) and not agrees("49.0 % cheaper", 1.49)
    assert agrees("4:05 min", 245.7) and not agrees("4:06 min", 245.7)
    assert agrees("1.2e+04", 12_345) and not agrees("1.2e+04", 13_345)


def test_every_number_on_the_page_is_that_of_the_files(browser, made):
    figures = browser[0]["figures"]
    assert len(figures) > 150
    for source, value, text in figures:
        assert float(value) == at(made, source), source
        assert agrees(text, float(value)), (source, value, text)


def test_the_data_inside_are_those_of_the_files(browser, made):
    data = browser[0]["data"]
    stored = json.loads((made / "R" / "bench.json").read_text())
    assert data["R/bench.json"] == stored
    assert data["R/bad.json"]["tasks"][1]["new"] == "inf"
    assert "SECRET" not in json.dumps(data)


def test_no_text_of_a_task_runs(browser):
    found, logged = browser
    assert found["hacked"] is None
    assert (found["images"], found["scripts"]) == (0, 2)
    assert "CONSOLE" not in logged, logged


def test_texts_are_shown_as_they_are(browser):
    found = browser[0]
    assert found["prompts"] == [EVIL.replace("\0", "�"), CJK]
    assert EVIL.replace("\0", "�") in found["evidence"] and CJK in found["evidence"]


def test_a_phone_never_scrolls_sideways_but_wide_tables_do(browser):
    found = browser[0]
    assert found["room"] == 360
    assert found["wide"] <= 360
    assert found["boxes"] > 0


def test_marks_speak_on_focus_and_hover(browser):
    found = browser[0]
    assert found["quiet"] and found["stays"] and found["gone"]
    assert found["told"] == found["hovered"] == found["said"]


def test_arrow_keys_go_from_tile_to_tile(browser):
    found = browser[0]
    assert found["stops"] == found["maps"] == 6
    assert found["walk"] == ["up:2:0.1", "up:2:0.01", "up:2:0.01", "up:3:0.01", "up:3:0.1"]


def test_tiles_are_coloured_alike_in_both_modes(browser):
    """Text on the deepest colours keeps a contrast that people can read (WCAG AA)."""
    for name in ("light", "dark"):
        ink, *tiles = (_luminance(one) for one in browser[0][name])
        assert len(tiles) == 2
        for tile in tiles:
            high, low = max(ink, tile), min(ink, tile)
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour.strip()[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_paper_shows_what_is_folded(browser):
    found = browser[0]
    assert found["closed"] == 2
    assert found["open"] == 2


def test_the_verdict_comes_first(browser):
    found = browser[0]
    assert found["verdicts"] == [
        "Undecided", "Fail", "Pass", "Not judged", "Undecided",
        "No clear difference", "No edit", "Better", "No clear difference",
    ]  # fmt: skip
    assert found["headlines"][2].split() == [
        "18.4",
        "%",
        "smaller",
        "2.1",
        "MB",
        "→",
        "1.7",
        "MB",
        "of",
        "weights",
    ]
    assert set(found["natures"]) == {"measured", "computed", "estimated"}


def test_nothing_is_fetched(made):
    page = (made / "page.html").read_text(encoding="utf-8")
    parser = _Text()
    parser.feed(page)
    names = {name for name, _ in parser.attributes}
    assert not names & {"src", "srcset", "action", "xlink:href", "style"}
    assert not [name for name in names if name.startswith("on")]
    assert all(value.startswith("#part-") for name, value in parser.attributes if name == "href")
    contents = [value for name, value in parser.attributes if name == "content"]
    assert any(value and value.startswith("default-src 'none'") for value in contents)
    assert "url(" not in page and "@import" not in page


def test_long_names_break_behind_points_and_strokes_only():
    from kanna.reporting.html import _breakable

    assert _breakable("model.layers.4.mlp.down_proj") == (
        "model.<wbr>layers.<wbr>4.<wbr>mlp.<wbr>down_<wbr>proj"
    )
    assert _breakable("text.txt (sha256 8032de3011e2303e)") == "text.txt (sha256 8032de3011e2303e)"
    assert _breakable("-2.40 pt to 1.5e-05") == "-2.40 pt to 1.5e-05"
    assert _breakable("kanna bench --against BASE") == 'kanna bench <span class="flag">--against</span> BASE'
    assert "<script>" not in _breakable("<script>alert.of.many_words")


def test_wide_tables_say_that_they_scroll_and_no_print_ends_in_a_legend(browser, made):
    assert browser[0]["said_wide"] == browser[0]["boxes"] > 0
    page = (made / "page.html").read_text(encoding="utf-8")
    assert page.index('class="legend"') < page.index('class="verdicts"')
    assert page.index("<h2>What the words mean</h2>") < page.index("<h2>Lineage of")
