"""What a report takes, refuses, and leaves untouched."""

import copy
import json

import pytest
from report_samples import (
    bench,
    comparison,
    decision,
    evaluation,
    everything,
    flip,
    lineage,
    task,
    write,
    write_model,
)

import kanna
from kanna.errors import InputError
from kanna.recipe.report import report
from kanna.reporting.sources import read_sources

GOOD = comparison("small", "pass", [task("q", 0.9, 0.9, decision("pass", 0.0, (-0.01, 0.01), -0.02))])


def files(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_equal_results_give_equal_bytes(tmp_path):
    directories = everything(tmp_path)
    one, other = (report(directories, tmp_path / name / "p.html") for name in ("one", "two"))
    assert one.html.read_bytes() == other.html.read_bytes()
    assert one.markdown.read_bytes() == other.markdown.read_bytes()


def test_the_result_says_what_was_written(tmp_path):
    result = kanna.report([write(tmp_path / "R", good=GOOD)], tmp_path / "p.html").to_dict()
    assert result == {
        "schema_version": 1,
        "kind": "report",
        "html": str(tmp_path / "p.html"),
        "markdown": str(tmp_path / "p.md"),
        "verdicts": {"small against base": "pass"},
        "sources": ["R/good.json"],
        "trials": None,
    }


def test_nothing_is_overwritten_unless_asked(tmp_path):
    source = write(tmp_path / "R", good=GOOD)
    for name in ("p.html", "p.md"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} exists already"):
            report([source], tmp_path / "p.html")
        assert files(tmp_path) == ["R/good.json", name]
        (tmp_path / name).unlink()
    (tmp_path / "p.html").write_text("mine")
    report([source], tmp_path / "p.html", force=True)
    assert (tmp_path / "p.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert files(tmp_path) == ["R/good.json", "p.html", "p.md"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "R", good=GOOD)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        report([source], tmp_path / "p.html")
    assert files(tmp_path) == ["R/good.json"]


@pytest.mark.parametrize(
    ("out", "said"), [("p.txt", "no HTML file"), ("p", "no HTML file"), ("d.html", "is a directory")]
)
def test_a_wrong_place_is_refused(tmp_path, out, said):
    source = write(tmp_path / "R", good=GOOD)
    (tmp_path / "d.html").mkdir()
    with pytest.raises(InputError, match=said):
        report([source], tmp_path / out, force=True)
    assert files(tmp_path) == ["R/good.json"]


def broken(change):
    made = copy.deepcopy(GOOD)
    change(made)
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("schema_version"), "has no sound schema_version"),
        (lambda data: data.update(schema_version=2), "upgrade kanna"),
        (lambda data: data.pop("status"), "status is missing"),
        (lambda data: data.update(status="<b>"), "status"),
        (lambda data: data["tasks"][0].update(base="0.9"), r"tasks\.0\.base: .*number"),
        (lambda data: data["tasks"][0]["decision"].update(interval=[0.1]), r"decision\.interval"),
        (lambda data: data["base"].update(bytes=0), r"base\.bytes"),
    ],
)
def test_a_damaged_result_is_refused_by_name(tmp_path, change, said):
    source = write(tmp_path / "R", bad=broken(change))
    with pytest.raises(InputError, match=said) as error:
        report([source], tmp_path / "p.html")
    assert "bad.json" in str(error.value)
    assert files(tmp_path) == ["R/bad.json"]


def test_folders_without_results_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write(tmp_path / "other", mine={"kind": "something"})
    for name, said in [
        ("empty", "holds no"),
        ("none", "no directory and no file"),
        ("file", "cannot be read"),
        ("other", "no"),
    ]:
        with pytest.raises(InputError, match=said):
            read_sources([tmp_path / name])
    with pytest.raises(InputError, match="nothing to report"):
        read_sources([])
    (tmp_path / "empty" / "cut.json").write_text('{"kind": "eval", ')
    with pytest.raises(InputError, match=r"cut\.json cannot be read"):
        read_sources([tmp_path / "empty"])


def test_one_folder_named_twice_is_read_once(tmp_path, monkeypatch):
    source = write(tmp_path / "R", good=GOOD)
    monkeypatch.chdir(source)
    names = [one.name for one in read_sources([source, ".", f"{source}/../R"])]
    assert names == ["R/good.json"]
    write(tmp_path / "b" / "R", good=GOOD)
    both = [one.name for one in read_sources([source, tmp_path / "b" / "R"])]
    assert both == ["R/good.json", "R/good.json (2)"]


def test_a_model_is_read_from_inside_its_directory(tmp_path, monkeypatch):
    model = write_model(tmp_path / "small", lineage(), {"seconds": 1.0})
    monkeypatch.chdir(model)
    (found,) = read_sources(["."])
    assert (found.name, found.kind, found.data["run"]) == ("small", "model", {"seconds": 1.0})


def test_texts_are_left_out_on_request_and_records_always(tmp_path):
    flipped = comparison("small", "pass", [task("q", 0.9, 0.9, flips=[flip("PRIVATE")])])
    source = write(tmp_path / "R", flipped=flipped, scored=evaluation("small", "q"))
    with_ = report([source], tmp_path / "with.html")
    without = report([source], tmp_path / "without.html", examples=False)
    assert "PRIVATE" in with_.html.read_text() and "PRIVATE" in with_.markdown.read_text()
    for path in (without.html, without.markdown):
        assert "PRIVATE" not in path.read_text()
    for path in (with_.html, without.html):
        assert "SECRET ROW" not in path.read_text()


def test_half_a_surrogate_pair_does_not_stop_it(tmp_path):
    source = write(tmp_path / "R", odd=comparison("small\ud800", "not judged", [task("q\udfff", 0.5, 0.5)]))
    assert "small?" in report([source], tmp_path / "p.html").html.read_text(encoding="utf-8")


def statuses(tmp_path, *directories):
    return report(directories, tmp_path / "p.html").verdicts


def test_a_bench_alone_has_no_verdict(tmp_path):
    assert statuses(tmp_path, write(tmp_path / "R", b=bench())) == {"No verdict": "not judged"}


def test_a_model_that_nobody_compared_is_not_judged(tmp_path):
    model = write_model(tmp_path / "small", lineage())
    assert statuses(tmp_path, model) == {"small from base": "not judged"}
    assert "18.4 % smaller" in (tmp_path / "p.html").read_text()


def test_a_lineage_brings_its_own_comparison_unless_there_is_another(tmp_path):
    inside = {key: value for key, value in GOOD.items() if key not in ("schema_version", "kind")}
    inside["tasks"][0].pop("flips")
    model = write_model(tmp_path / "small", lineage({"comparison": inside | {"status": "fail"}}))
    assert statuses(tmp_path, model) == {"small against base": "fail"}
    later = write(tmp_path / "R", later=GOOD)
    both = report([later, model], tmp_path / "both.html").verdicts
    assert both == {"small against base": "pass"}


def test_what_no_meter_measured_is_said_and_not_tabled(tmp_path):
    unmetered = bench(estimate=None)
    unmetered["meters"] = {"RAPL packages": "no counter", "NVML": "no device"}
    text = report([write(tmp_path / "R", b=unmetered)], tmp_path / "p.html").markdown.read_text()
    assert "Energy by RAPL packages: not measured: no counter." in text
    assert "J/token" not in text and "(estimated)" not in text
    estimated = bench(estimate=0.06)
    text = report([write(tmp_path / "E", b=estimated)], tmp_path / "e.html").markdown.read_text()
    assert "### Energy that no counter measured (estimated)" in text
    assert "### Energy (measured)" in text


def test_models_of_one_name_are_told_apart(tmp_path):
    """A latency belongs to the model of that name and size, a score to the task of that many rows."""
    ours = comparison("small", "not judged", [task("q", 0.9, 0.8, rows=10)])
    other = comparison("small", "not judged", [task("q", 0.7, 0.6, rows=20)], count=1_000_000)
    text = report(
        [write(tmp_path / "R", a=ours, b=other, c=bench())], tmp_path / "p.html"
    ).markdown.read_text()
    overview = text.split("### All models")[1].split("###")[0]
    rows = {line.split(" | ")[1]: line for line in overview.splitlines() if line.startswith("| small |")}
    assert "2.3 ms" in rows["1.7 MB"] and "80.00 %" in rows["1.7 MB"] and "60.00 %" not in rows["1.7 MB"]
    assert "not measured" in rows["1.0 MB"] and "60.00 %" in rows["1.0 MB"]


def test_data_hold_what_was_read(tmp_path):
    source = write(tmp_path / "R", good=GOOD)
    page = report([source], tmp_path / "p.html").html.read_text(encoding="utf-8")
    inside = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == {"R/good.json": GOOD}


def test_memory_that_nobody_measured_is_said(tmp_path):
    unasked = bench()
    for model in unasked["models"]:
        model["memory"] = None
    text = report([write(tmp_path / "R", b=unasked)], tmp_path / "p.html").markdown.read_text()
    assert "### Size; memory was not measured (measured)" in text
    assert "| model | on disk |\n" in text
    half = bench()
    half["models"][0]["memory"] = None
    half["models"][1]["memory"]["device_bytes"] = 1_000_000
    text = report([write(tmp_path / "H", b=half)], tmp_path / "h.html").markdown.read_text()
    assert "| small | 1.7 MB | not measured | not measured | not measured |" in text
    assert "| base | 2.1 MB | 421.8 MB | 1.0 MB | 400.1 MB |" in text
