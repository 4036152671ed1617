"""What is left of the folder of unfinished work after a run or a refusal, and for the run that follows."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kanna.errors import InputError
from kanna.runs.places import work_directory
from kanna.runs.unfinished import about_to_name, clear, sole_writer, unfinished_work


@contextmanager
def run(out: Path, resume: bool = False, worth: str | None = None) -> Iterator[Path]:
    with unfinished_work(out, "key", resume, force=False, worth=worth) as directory:
        yield directory


def piece(directory: Path, name: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"hours of work")


def test_a_run_that_ended_leaves_no_folder(tmp_path: Path) -> None:
    with run(tmp_path / "new" / "out") as directory:
        piece(directory, "step-1/block-000.safetensors")
        clear(directory)
    assert list(tmp_path.iterdir()) == []


def test_nobody_gets_in_before_the_lock_is_given_back(tmp_path: Path) -> None:
    with run(tmp_path / "out") as directory:
        clear(directory)
        with pytest.raises(InputError, match="another run is writing"), run(tmp_path / "out"):
            pytest.fail("two at once")


def test_the_lock_of_another_run_stays(tmp_path: Path) -> None:
    """Somebody removes the folder of a first run, a second begins, and the first ends before it."""
    out = tmp_path / "out"
    with ExitStack() as second:
        with run(out) as directory:
            shutil.rmtree(directory)
            second.enter_context(run(out))
            (directory / "run.json").unlink()
        assert [path.name for path in directory.iterdir()] == ["lock"]
        with pytest.raises(InputError, match="another run is writing"), run(out):
            pytest.fail("two at once")


@pytest.mark.parametrize("name", ["step-1/block-000.safetensors", "model-1/model.safetensors"])
@pytest.mark.parametrize(
    "error",
    [
        InputError("too little space", "free some"),
        InputError("logits are not finite"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["space", "logits", "disk"],
)
def test_a_late_refusal_keeps_what_is_finished(tmp_path: Path, name: str, error: Exception) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError) as refused, run(out) as directory:
        piece(directory, name)
        raise error
    assert "--resume" in refused.value.remedy and not refused.value.remedy.startswith(";")
    if isinstance(error, InputError):
        assert (refused.value.problem, error.remedy in refused.value.remedy) == (error.problem, True)
    with run(out, resume=True):
        assert (work_directory(out) / name).read_bytes() == b"hours of work"


@pytest.mark.parametrize(
    "left", ["", "step-1/block-000.safetensors.partial", ".model-1.host-1.partial/x.json"]
)
def test_a_refusal_before_anything_is_finished_leaves_nothing(tmp_path: Path, left: str) -> None:
    with pytest.raises(InputError) as refused, run(tmp_path / "new" / "out") as directory:
        if left:
            piece(directory, left)
        raise InputError("wrong", "do it well")
    assert refused.value.remedy == "do it well"
    assert list(tmp_path.iterdir()) == []


def test_a_search_goes_on_with_its_journal_only(tmp_path: Path) -> None:
    """Its states are made anew, so they are no reason to keep the folder."""
    with pytest.raises(InputError), run(tmp_path / "out", worth="journal") as directory:
        piece(directory, "states/0.safetensors")
        raise InputError("wrong", "")
    assert not directory.exists()
    with pytest.raises(InputError, match="--resume"), run(tmp_path / "out", worth="journal") as directory:
        piece(directory, "journal")
        raise InputError("wrong", "")
    assert (directory / "journal").exists()


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_run_left_that_was_killed_after_it_had_named_its_output(tmp_path: Path, alone: bool) -> None:
    """It has nothing left to do: the next one cleans up, and is told what it would be told without that."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "kanna.json").write_text("{}")
    piece(work_directory(out), "run.json")
    piece(work_directory(out), "step-1/block-000.safetensors")
    about_to_name(work_directory(out), out)
    with pytest.raises(InputError, match="exists already"), sole_writer(out) if alone else run(out):
        pytest.fail("it is replaced")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_run_left_that_was_killed_before_is_kept(tmp_path: Path) -> None:
    """An output of that name that another run made."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "kanna.json").write_text("{}")
    piece(work_directory(out), "run.json")
    about_to_name(work_directory(out), out)
    (out / "kanna.json").write_text('{"of": "another"}')
    with pytest.raises(InputError, match="holds an unfinished run"), run(out):
        pytest.fail("it is replaced")
    assert (work_directory(out) / "run.json").is_file()
