"""`kanna demo` from end to end, held against the table at the top of the README."""

import json
import re
from pathlib import Path

import pytest

from kanna.cli.main import main

README = Path(__file__).parents[2] / "README.md"
# Points of accuracy: two questions of 279, for other processors and numbers of threads.
TOLERANCE = 0.8
_BITS = re.compile(r"^\| whole numbers of (\d) bits \| ([\d.]+) MB \| ([\d.]+) % \| *\|$", re.MULTILINE)
_ROW = re.compile(
    r"^\| (all|low rank, keep 0.\d) \| ([\d.]+) MB \| ([\d.]+) % \|(?: ([\d.]+) %)? \|$", re.MULTILINE
)


def promised() -> dict[float, tuple[float, float, float | None]]:
    """Keep -> megabytes, right answers of kanna and of plain SVD in per cent, as README says."""
    rows = _ROW.findall(README.read_text(encoding="utf-8"))
    return {
        1.0 if keep == "all" else float(keep.split()[-1]): (
            float(size),
            float(ours),
            float(plain) if plain else None,
        )
        for keep, size, ours, plain in rows
    }


def promised_bits() -> dict[int, tuple[float, float]]:
    """Bits -> megabytes and right answers in per cent, as README says."""
    rows = _BITS.findall(README.read_text(encoding="utf-8"))
    return {int(bits): (float(size), float(right)) for bits, size, right in rows}


def test_the_table_is_read() -> None:
    assert promised_bits() == {8: (1.3, 99.3), 4: (0.82, 99.3), 3: (0.70, 99.3)}
    assert promised() == {
        1.0: (2.1, 99.3, None),
        0.8: (1.7, 99.3, 98.2),
        0.6: (1.4, 93.5, 70.3),
        0.4: (0.96, 75.6, 16.5),
    }


@pytest.mark.slow
def test_the_demo_gives_what_the_readme_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert written.pop("machine")["cores"] >= 1 and written.pop("finished")
    assert written == result
    assert result["questions"] == 279
    assert 100 * result["constant_answer"] == pytest.approx(8.6, abs=0.05)
    dense, *rows = result["rows"]
    rows, whole = rows[:-3], rows[-3:]
    assert [row["setting"] for row in whole] == [f"{bits} bits" for bits in promised_bits()]
    for row, (size, right) in zip(whole, promised_bits().values(), strict=True):
        assert row["model_bytes"] / 1e6 == pytest.approx(size, abs=0.05)
        assert 100 * row["right"] == pytest.approx(right, abs=TOLERANCE)
    found = {
        (method, keep): row
        for (keep, method), row in zip(
            ((keep, method) for keep in (0.9, 0.8, 0.6, 0.4) for method in ("kanna's default", "plain SVD")),
            rows,
            strict=True,
        )
    }
    assert all(row["method"] == method for (method, _), row in found.items())
    for keep, (size, ours, plain) in promised().items():
        row = dense if keep == 1.0 else found["kanna's default", keep]
        assert row["keep"] == pytest.approx(keep, abs=0.005)
        assert row["model_bytes"] / 1e6 == pytest.approx(size, abs=0.05)
        assert 100 * row["right"] == pytest.approx(ours, abs=TOLERANCE)
        if plain is not None:
            other = found["plain SVD", keep]
            assert other["model_bytes"] == pytest.approx(row["model_bytes"], rel=0.01)
            assert 100 * other["right"] == pytest.approx(plain, abs=TOLERANCE)
    assert all((out / f"int-{bits}" / "kanna.json").is_file() for bits in promised_bits())
    for keep in ("0.9", "0.8", "0.6", "0.4"):
        for name in (f"kanna-{keep}", f"plain-{keep}"):
            assert (out / name / "model.safetensors").is_file() and (out / name / "kanna.json").is_file()
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page)]) == 0
    capsys.readouterr()
    said = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "**55.1 % smaller**" in said and "### The same model at several sizes (measured)" in said
    assert said.count("| kanna's default |") == said.count("| plain SVD |") == 4

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["demo", "--out", str(out), "--json", "--quiet"]) == 2
    said = capsys.readouterr()
    assert "exists already" in said.err and "--force" in said.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_force_replaces_only_an_earlier_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--force", "--quiet"]) == 2
    assert "not the output of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("foreign", ["thesis.tex", "kanna-0.9/notes.txt", ".git/HEAD", "models/x"])
def test_force_replaces_no_demo_with_something_else_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: str
) -> None:
    (tmp_path / "kanna-0.9").mkdir()
    (tmp_path / "kanna-0.9" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--force", "--quiet"]) == 2
    assert "does not replace it" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / foreign).read_text() == "precious"


def test_the_files_of_the_demo_are_written_to_try_verbs_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The spreadsheet asks what the rows ask: a task of the same questions, answers and groups."""
    from kanna.tasks.data.rows import read_rows

    place = tmp_path / "demo"
    assert main(["demo", "--files", str(place), "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["names"]
    assert names == ["calibration.jsonl", "heldout.jsonl", "model", "questions.csv", "questions.jsonl"]
    assert names == sorted(path.name for path in place.iterdir())
    lines, sheet = (read_rows(place / name) for name in ("questions.jsonl", "questions.csv"))
    assert [(row.prompt, [one.strip() for one in row.answers], row.group) for row in lines] == [
        (row.prompt, list(row.answers), row.group) for row in sheet
    ]
    for where in (place, tmp_path / "model"):
        if where != place:
            where.mkdir()
        assert main(["demo", "--files", str(where)]) == 2
        assert "exists already" in capsys.readouterr().err


def test_force_replaces_files_of_the_demo_that_nobody_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "demo"
    assert main(["demo", "--files", str(place)]) == 0
    (place / "heldout.jsonl").unlink()
    (place / ".DS_Store").write_text("")
    before = place.stat().st_ino
    assert main(["demo", "--files", str(place), "--force"]) == 0
    assert place.stat().st_ino != before and (place / "heldout.jsonl").is_file()
    capsys.readouterr()


@pytest.mark.parametrize(
    "name", ["questions.csv", "mine.txt", "model/config.json", "small/x", "model/scales/x"]
)
def test_force_replaces_no_files_that_are_somebody_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    place = tmp_path / "demo"
    assert main(["demo", "--files", str(place), "--quiet"]) == 0
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("precious")
    assert main(["demo", "--files", str(place), "--force"]) == 2
    assert "not as kanna wrote it" in " ".join(capsys.readouterr().err.split())
    assert (place / name).read_text() == "precious"


def test_files_of_the_demo_have_no_other_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "demo"
    assert main(["demo", "--files", str(place), "--out", str(tmp_path / "other")]) == 2
    assert "give one of the two" in capsys.readouterr().err and not place.exists()
