import errno
import hashlib
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy import LLAMA, compress

from kanna.checkpoint import writer
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import output_directory, spec_of, write_tensors
from kanna.errors import InputError, KannaError

OLD = '{"model_type": "llama"}'


def digest(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
def test_same_input_same_bytes(llama_base: Path, tmp_path: Path, limit: int) -> None:
    one = compress(llama_base, tmp_path / "a" / "one", LLAMA, max_shard_bytes=limit)
    two = compress(llama_base, tmp_path / "b" / "two", LLAMA, max_shard_bytes=limit)
    assert digest(one) == digest(two)


def test_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((i + 1,), float(i)) for i in range(6)}
    specs = [spec_of(n, t) for n, t in tensors.items()]
    for name, order in (("a", sorted(tensors)), ("b", sorted(tensors, reverse=True))):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name, specs, ((n, tensors[n]) for n in order), max_shard_bytes=30)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    for existing in (tmp_path / "dir", tmp_path / "file", tmp_path / "link"):
        existing.mkdir() if existing.name == "dir" else None
        existing.write_text("x") if existing.name == "file" else None
        existing.symlink_to("nowhere") if existing.name == "link" else None
        before = names(tmp_path)
        with pytest.raises(InputError, match="exists already"), output_directory(existing):
            pytest.fail("entered")
        assert names(tmp_path) == before


def test_force_replaces_the_whole_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(OLD)
    (out / "merges.txt").write_text("old")
    with output_directory(out, force=True) as partial:
        (partial / "config.json").write_text("new")
        assert (out / "config.json").read_text() == OLD
    assert digest(out).keys() == {"config.json"}
    assert (out / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_force_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(OLD)
    with pytest.raises(RuntimeError), output_directory(out, force=True) as partial:
        (partial / "config.json").write_text("new")
        raise RuntimeError
    assert (out / "config.json").read_text() == OLD
    assert names(tmp_path) == ["out"]


def test_force_spares_what_is_no_checkpoint(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="not the directory of a model"):
        output_directory(precious, force=True).__enter__()
    assert (precious / "thesis.tex").exists()


def test_an_exception_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        output_directory(tmp_path / "new" / "deep" / "out") as partial,
    ):
        (partial / "half").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


_KILLED = """
import sys, time
from pathlib import Path
import torch
from kanna.checkpoint.writer import TensorSpec, output_directory, write_tensors
def slow():
    yield "a", torch.ones(1000)
    print("half", flush=True)
    time.sleep(60)
with output_directory(sys.argv[1]) as partial:
    write_tensors(partial, [TensorSpec(n, torch.float32, (1000,)) for n in "ab"], slow())
"""


def test_a_kill_leaves_nothing_under_the_name_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = names(tmp_path)
    assert len(left) == 1 and left[0].startswith(".out.") and left[0].endswith(".partial")
    with output_directory(out) as partial:
        (partial / "config.json").write_text("{}")
    assert names(tmp_path) == ["out"]


def test_leftovers_of_a_live_process_or_another_output_stay(tmp_path: Path) -> None:
    live = tmp_path / f".out.{writer._host()}-{os.getppid()}.partial"
    other = tmp_path / f".out2.{writer._host()}-999999999.partial"
    elsewhere = tmp_path / ".out.other_host-999999999.partial"
    for path in (live, other, elsewhere):
        path.mkdir()
    with output_directory(tmp_path / "out"):
        pass
    assert all(path.exists() for path in (live, other, elsewhere))


def fail_with(code: int) -> Callable[..., None]:
    calls = []

    def write(file: object, data: memoryview) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(code, os.strerror(code))
        file.write(data)

    return write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_while_writing(
    llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(writer, "write_data", fail_with(code))
    with pytest.raises(InputError, match="no space left") as error:
        compress(llama_base, tmp_path / "out", LLAMA)
    assert error.value.exit_code == 2
    assert names(tmp_path) == []


def test_no_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are needed"), output_directory(tmp_path / "a", needed_bytes=10**18):
        pytest.fail("entered")
    assert names(tmp_path) == []


def test_other_failures_of_the_system_are_not_disguised(
    llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "write_data", fail_with(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output"):
        compress(llama_base, tmp_path / "out", LLAMA)
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be made"), output_directory(tmp_path / "file" / "out"):
        pytest.fail("entered")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([("a", torch.ones(2))], "never came"),
        ([("a", torch.ones(2)), ("a", torch.ones(2))], "unexpected or twice"),
        ([("c", torch.ones(2))], "unexpected or twice"),
        ([("a", torch.ones(3))], "planned as"),
        ([("a", torch.ones(2).half())], "planned as"),
    ],
)
def test_tensors_other_than_planned(given: list, text: str, tmp_path: Path) -> None:
    specs = [spec_of(name, torch.ones(2)) for name in "ab"]
    with pytest.raises(KannaError, match=text):
        write_tensors(tmp_path, specs, given)


def test_planned_twice(tmp_path: Path) -> None:
    with pytest.raises(KannaError, match="planned twice"):
        write_tensors(tmp_path, [spec_of("a", torch.ones(2))] * 2, [])


def test_writing_holds_one_tensor(tmp_path: Path) -> None:
    alive = []

    def stream():
        for i in range(6):
            tensor = torch.full((1000,), float(i))
            alive.append(weakref.ref(tensor))
            assert sum(ref() is not None for ref in alive) <= 2
            yield f"t{i}", tensor
            del tensor

    write_tensors(tmp_path, [spec_of(f"t{i}", torch.ones(1000)) for i in range(6)], stream())


def test_views_are_written_as_their_own_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path, [spec_of("t", base.T)], [("t", base.T)])
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(Checkpoint.open(tmp_path).tensor("t"), base.T)
