"""Files of caches and of unfinished work that were cut short, and a cache in which nothing can be kept."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "lowrank"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import tiny
from families import bases, text  # noqa: F401 (fixtures)
from killing import hashes
from tiny_model import save_model

from kanna.cli.main import main
from kanna.errors import InputError
from kanna.runs import places
from kanna.runs.places import usable_cache, work_directory
from kanna.runs.workspace import Stream, Workspace
from kanna.tasks.journal import Journal, Tally
from kanna.training.state import StateFile

Base = Callable[[str], Path]


class Interrupted(Exception):
    """Raised by a progress callback, as Ctrl-C would be."""


def cut(path: Path, keep: float = 0.5) -> None:
    """As a power failure leaves it."""
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def stop_at(stage: str, done: int) -> Callable[[str, int, int], None]:
    def progress(found: str, count: int, total: int) -> None:
        if (found, count) == (stage, done):
            raise Interrupted

    return progress


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_piece_that_was_cut_short_is_not_there(tmp_path: Path, keep: float) -> None:
    workspace = Workspace(tmp_path)
    workspace.save("a", {"x": torch.ones(100)}, {"n": 1})
    stream = Stream(tmp_path / "s")
    stream.save([torch.ones(50)])
    assert workspace.has("a") and stream.exists()
    cut(tmp_path / "a", keep)
    cut(tmp_path / "s", keep)
    for read in (workspace.load, workspace.note, workspace.shapes, lambda name: workspace.pick(name, ["x"])):
        with pytest.raises(InputError, match=r"damaged(.|\n)*--force(.|\n)*kanna cache clear"):
            read("a")
    assert not workspace.has("a") and not stream.exists()


@pytest.mark.parametrize("which", ["block-000", "block-001", "original-002", "compressed-002"])
def test_damaged_work_is_done_again_to_the_same_bytes(
    bases: Base,  # noqa: F811
    text: Path,  # noqa: F811
    tmp_path: Path,
    which: str,
) -> None:
    cache, settings = tmp_path / "cache", {"keep": 0.6}
    tiny.compress(bases("llama"), tmp_path / "reference" / "out", text, cache, **settings)
    with pytest.raises(Interrupted):
        tiny.compress(
            bases("llama"), tmp_path / "out", text, cache, progress=stop_at("replace", 2), **settings
        )
    (piece,) = work_directory(tmp_path / "out").rglob(f"{which}.safetensors")
    cut(piece)
    tiny.compress(bases("llama"), tmp_path / "out", text, cache, resume=True, **settings)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference" / "out")


def test_damaged_statistics_are_computed_again(bases: Base, text: Path, tmp_path: Path) -> None:  # noqa: F811
    cache = tmp_path / "cache"
    tiny.compress(bases("llama"), tmp_path / "one" / "out", text, cache, keep=0.6)
    pieces = sorted((cache / "statistics").rglob("*.safetensors"))
    assert len(pieces) > 1
    for piece in pieces:
        cut(piece)
    tiny.compress(bases("llama"), tmp_path / "two" / "out", text, cache, keep=0.6)
    assert hashes(tmp_path / "one" / "out") == hashes(tmp_path / "two" / "out")


def test_a_journal_is_read_up_to_the_first_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "tallies.jsonl"
    journal = Journal.open(path)
    for part in range(4):
        journal.add("edit", part, Tally(part, 1.0, 2.0))
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"\0" * 40 + b"\n", b"[1]\n", b'{"candidate": "edit"}\n', b"\xff\n"):
        path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        found = Journal.open(path)
        assert found.known == {("edit", part): Tally(part, 1.0, 2.0) for part in range(2)}
        assert path.read_bytes() == b"".join(lines[:2])
    found.add("edit", 2, Tally(7))
    assert Journal.open(path).known["edit", 2] == Tally(7)


def test_a_damaged_record_of_a_run_says_how_to_start_over(
    bases: Base,  # noqa: F811
    text: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    with pytest.raises(Interrupted):
        tiny.compress(bases("llama"), out, text, cache, keep=0.6, progress=stop_at("replace", 1))
    cut(work_directory(out) / "run.json")
    with pytest.raises(InputError, match="start over with --force"):
        tiny.compress(bases("llama"), out, text, cache, keep=0.6, resume=True)
    assert tiny.compress(bases("llama"), out, text, cache, keep=0.6, force=True).passed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base")


def task_of(room: Path) -> Path:
    rows = [{"prompt": f"w{i} w{i + 1}", "choices": [" w1", " w2"], "label": i % 2} for i in range(6)]
    (room / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (room / "text.txt").write_text(" ".join(f"w{i * i % 90}" for i in range(600)))
    return room / "task.jsonl"


@pytest.mark.parametrize("kind", ["a file", "below a file", "evaluations are a file", "nobody may write"])
def test_a_cache_in_which_nothing_can_be_kept(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """All verbs go on, and each says so once."""
    cache, task = tmp_path / "cache", task_of(tmp_path)
    if kind == "a file":
        cache.write_text("mine")
    elif kind == "below a file":
        cache.write_text("mine")
        cache = cache / "deep" / "cache"
    elif kind == "evaluations are a file":
        cache.mkdir()
        for name in ("evaluations", "spectra", "statistics"):
            (cache / name).write_text("mine")
    else:
        real = Path.mkdir

        def mkdir(path: Path, *args: object, **named: object) -> None:
            if path == cache or cache in path.parents:
                raise OSError(30, "Read-only file system", str(path))
            real(path, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setenv("KANNA_CACHE", str(cache))
    before = {str(path): path.is_file() and path.read_text() for path in tmp_path.rglob("*") if path != task}
    words = ("lowrank", model, "--keep", "0.7", "--align", "1", "--calibration", tmp_path / "text.txt")
    for verb in (
        ("inspect", model, "--spectra", "--select", "q@0"),
        ("eval", model, "--task", task),
        (*words, "--context", "16", "--tokens", "256", "--task", task, "--out", tmp_path / "out"),
    ):
        places.warn_once.cache_clear()
        capsys.readouterr()
        assert main([str(word) for word in verb]) in (0, 3)
        said = capsys.readouterr().err
        assert said.count("nothing can be kept in the cache") == 1, said
    after = {name: Path(name).is_file() and Path(name).read_text() for name in before}
    assert after == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or "work" in path.name]


def test_a_cache_below_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KANNA_CACHE", "~/kept")
    assert usable_cache("spectra") == tmp_path / "kept" / "spectra"


def test_damaged_spectra_and_scores_are_computed_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, task = tmp_path / "cache", task_of(tmp_path)
    monkeypatch.setenv("KANNA_CACHE", str(cache))
    verbs = (
        ("inspect", model, "--spectra", "--select", "q@0", "--json", "-q"),
        ("eval", model, "--task", task, "--json", "-q"),
    )

    def said() -> list[object]:
        capsys.readouterr()
        found = []
        for verb in verbs:
            assert main([str(word) for word in verb]) == 0
            result = json.loads(capsys.readouterr().out)
            result.pop("run", None)
            found.append(result)
        return found

    before = said()
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"spectra", "evaluations"}
    for path in files:
        cut(path)
    assert said() == before
    assert main(["cache", "--clear", "-q"]) == 0 and not any(path.is_file() for path in cache.rglob("*"))


def test_a_state_of_training_that_was_cut_short_is_named(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.safetensors")
    state.save({"x": torch.ones(100)}, {"step": 1})
    assert state.load()[1] == {"step": 1}
    cut(state.path)
    with pytest.raises(InputError, match=r"state\.safetensors is damaged(.|\n)*--force"):
        state.load()
