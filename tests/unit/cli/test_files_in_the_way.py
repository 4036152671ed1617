"""Files that verbs write: what was read, and what nobody asked to replace, stays."""

import json
from pathlib import Path

import pytest

from kanna.checkpoint.whole import write_whole
from kanna.runs.results import check_free, write_result
from kanna.tasks.data.split import split_task


def rows(path: Path) -> str:
    lines = [json.dumps({"prompt": f"fact {i} of {i * i}", "answer": f"{i}"}) for i in range(12)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path.read_text()


@pytest.mark.parametrize("part", ["validation.jsonl", "test.jsonl"])
@pytest.mark.parametrize("linked", [False, True])
def test_the_file_that_is_split_is_never_replaced(kanna, tmp_path, part, linked):
    file = tmp_path / "data" / part
    before = rows(file)
    given = tmp_path / "given.jsonl"
    if linked:
        given.symlink_to(file)
    ran = kanna("task", "split", given if linked else file, "--out", tmp_path / "data" / "..", "-q")
    assert ran.code == 0
    words = ("task", "split", given if linked else file, "--out", tmp_path / "data", "--force", "-q")
    ran = kanna(*words)
    assert ran.code == 2 and "the file that is split" in ran.err
    assert file.read_text() == before and sorted(path.name for path in file.parent.iterdir()) == [part]


def test_parts_of_an_earlier_split_are_replaced(kanna, tmp_path):
    rows(tmp_path / "facts.jsonl")
    words = ("task", "split", tmp_path / "facts.jsonl", "--out", tmp_path / "parts", "-q")
    assert kanna(*words).code == 0
    assert kanna(*words).code == 2
    assert kanna(*words, "--force").code == 0


def test_a_report_replaces_no_markdown_but_its_own(kanna, base, tmp_path):
    """The page's name was given; that of the Markdown beside it was not."""
    results = tmp_path / "results"
    write_result(results, "bench", "m", {"kind": "bench"})
    (results / "bench-m.json").unlink()
    card = tmp_path / "README.md"
    card.write_text("# My project\n\nwords\n")
    small = tmp_path / "small"
    words = ("--keep", "0.7", "--method", "plain", "--align", "1")
    assert kanna("lowrank", base, *words, "--out", small, "-q").code == 0
    ran = kanna("report", small, "--out", tmp_path / "README.html", "--force")
    assert ran.code == 2 and "README.md" in ran.err
    assert card.read_text() == "# My project\n\nwords\n" and not (tmp_path / "README.html").exists()
    assert kanna("report", small, "--out", tmp_path / "page.html").code == 0
    assert kanna("report", small, "--out", tmp_path / "page.html").code == 2
    assert kanna("report", small, "--out", tmp_path / "page.html", "--force").code == 0


def test_a_picture_is_not_replaced_unasked(kanna, shared_base, tmp_path):
    picture = tmp_path / "figure.png"
    picture.write_text("mine")
    words = ("inspect", shared_base, "--select", "q@0", "--plot", picture, "-q")
    ran = kanna(*words)
    assert ran.code == 2 and "--force" in ran.err and picture.read_text() == "mine"
    assert kanna(*words, "--force").code == 0 and picture.read_bytes().startswith(b"\x89PNG")


def test_a_result_that_came_meanwhile_stays(tmp_path):
    check_free(tmp_path, "eval", "model", False)
    (tmp_path / "eval-model.json").write_text("another's")
    with pytest.raises(Exception, match="exists already"):
        write_result(tmp_path, "eval", "model", {})
    assert (tmp_path / "eval-model.json").read_text() == "another's"
    write_result(tmp_path, "eval", "model", {}, force=True)
    assert set(json.loads((tmp_path / "eval-model.json").read_text())) == {"finished", "machine"}


@pytest.mark.parametrize("links", [True, False])
def test_several_files_get_their_names_or_none_does(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(PermissionError()))
    (tmp_path / "b").write_text("mine")
    with pytest.raises(FileExistsError):
        write_whole({tmp_path / "a": b"1", tmp_path / "b": b"2"}, replace=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "mine"}
    write_whole({tmp_path / "c": b"1", tmp_path / "d": b"2"}, replace=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "d"]


def test_a_split_says_which_part_came_meanwhile(tmp_path, monkeypatch):
    import kanna.tasks.data.split as module

    rows(tmp_path / "facts.jsonl")
    real = module.units_of

    def meanwhile(given):
        (tmp_path / "test.jsonl").write_text("mine")
        return real(given)

    monkeypatch.setattr(module, "units_of", meanwhile)
    with pytest.raises(Exception, match=r"test\.jsonl exists already"):
        split_task(tmp_path / "facts.jsonl", tmp_path)
    assert (tmp_path / "test.jsonl").read_text() == "mine" and not (tmp_path / "validation.jsonl").exists()
