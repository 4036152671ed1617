"""One output: never the model that is read, one writer at a time; a stopped run says how to go on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from killing import hashes, start, status_of

from kanna.cli.main import main
from kanna.runs.lock import Held, locked

_WAITS = """
import sys, time
import kanna.methods.lowrank.execute as execute
from kanna.cli.main import main
execute.replace_blocks = lambda *_: time.sleep(60)
sys.exit(main())
"""
PLAIN = ("--keep", "0.7", "--method", "plain", "--align", "1")
EDIT = ("--edit", "down:1:0.5")


@pytest.fixture(scope="session")
def shared_edited(shared_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with edits whose originals lie in it; nobody changes it."""
    out = tmp_path_factory.mktemp("edited") / "edited"
    words = ["laser", "apply", shared_base, *EDIT, "--keep-originals", "--out", out, "-q"]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.fixture
def edited(shared_edited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_edited, tmp_path / "edited"))


def spelled(source: Path, room: Path) -> list[Path]:
    """Other names of a directory, of one in it, and of one that holds it."""
    (room / "link").symlink_to(source)
    (room / "up").symlink_to(source.parent)
    return [
        source,
        room / "link",
        source.parent / "." / source.name / ".." / source.name,
        room / "up" / source.name,
        source / "new",
        room / "link" / "new",
        source / ".." / source.name / "deep" / "new",
        source.parent,
        room / "link" / "..",
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("verb", ["lowrank", "apply", "search", "run"])
def test_the_model_that_is_read_is_never_replaced(kanna, base, tmp_path, verb, number):
    deep = tmp_path / "room" / "models" / "base"
    deep.parent.mkdir(parents=True)
    base.rename(deep)
    (tmp_path / "other").mkdir()
    task = tmp_path / "task.jsonl"
    rows = [{"prompt": f"w{i} w1", "choices": [" w1", " w2"], "label": i % 2} for i in range(8)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    step = {"lowrank": {"keep": 0.7, "method": "plain", "align": 1}}
    recipe.write_text(json.dumps({"model": str(deep), "steps": [step]}))
    out = spelled(deep, tmp_path / "other")[number]
    words: dict[str, Sequence[object]] = {
        "lowrank": ("lowrank", deep, *PLAIN),
        "apply": ("laser", "apply", deep, *EDIT),
        "search": ("laser", "search", deep, "--task", task),
        "run": ("run", recipe),
    }
    before = hashes(tmp_path)
    ran = kanna(*words[verb], "--out", out, "--force", "-q")
    assert ran.code == 2 and ran.err.count("kanna: error:") == 1, ran.err
    assert hashes(tmp_path) == before


def test_a_directory_that_the_links_of_a_model_lead_into_is_not_replaced(kanna, base, tmp_path):
    """As in the cache of the hub: a directory of links, and the files elsewhere."""
    links = tmp_path / "links"
    links.mkdir()
    for file in base.iterdir():
        (links / file.name).symlink_to(file)
    before = hashes(base)
    ran = kanna("lowrank", links, *PLAIN, "--out", base, "--force", "-q")
    assert ran.code == 2 and "never touched" in ran.err
    assert hashes(base) == before


@pytest.mark.parametrize("number", range(4))
def test_what_is_restored_and_what_it_is_restored_from_stay(kanna, edited, tmp_path, number):
    (tmp_path / "other").mkdir()
    out = spelled(edited, tmp_path / "other")[number]
    before = hashes(edited)
    ran = kanna("laser", "restore", edited, "--out", out, "--force", "-q")
    assert ran.code == 2, ran.err
    assert hashes(edited) == before


def test_the_base_of_a_restored_model_stays(kanna, base, edited):
    shutil.rmtree(edited / "kanna-originals", ignore_errors=True)
    before = hashes(base)
    ran = kanna("laser", "restore", edited, "--base", base, "--out", base, "--force", "-q")
    assert ran.code == 2, ran.err
    assert hashes(base) == before


def test_a_project_with_a_config_is_refused_at_once(kanna, base, tmp_path, monkeypatch):
    import kanna.methods.lowrank.execute as execute

    monkeypatch.setattr(execute, "replace_blocks", lambda *_: pytest.fail("worked"))
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git" / "HEAD").write_text("ref")
    (project / "config.json").write_text('{"model_type": "llama"}')
    (project / "thesis.tex").write_text("years")
    ran = kanna("lowrank", base, *PLAIN, "--out", project, "--force", "-q")
    assert ran.code == 2 and ".git" in ran.err
    assert (project / "thesis.tex").read_text() == "years"


def test_a_record_of_somebody_else_is_refused(kanna, base, tmp_path):
    (tmp_path / "out.run.json").write_text("mine")
    ran = kanna("lowrank", base, *PLAIN, "--out", tmp_path / "out", "-q")
    assert ran.code == 2 and "out.run.json" in ran.err
    assert (tmp_path / "out.run.json").read_text() == "mine" and not (tmp_path / "out").exists()


def together(*commands: Sequence[object], room: Path) -> list[tuple[int, str]]:
    """(exit code, what it said) of commands begun at one moment, each in a process of its own."""
    gate, said = room / "gate", [room / f"said-{number}" for number in range(len(commands))]

    def once_open(words: Sequence[object], log: Path) -> Callable[[], int]:
        def action() -> int:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            while not gate.exists():
                time.sleep(0.001)
            code = main([str(word) for word in words])
            sys.stderr.flush()
            return code

        return action

    children = [start(once_open(words, log)) for words, log in zip(commands, said, strict=True)]
    gate.touch()
    return [(status_of(child), log.read_text()) for child, log in zip(children, said, strict=True)]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_of_runs_on_one_output_at_once_one_wins(shared_base, shared_edited, tmp_path, force):
    room, out = tmp_path / "room", tmp_path / "out"
    room.mkdir()
    commands = [
        ("laser", "apply", shared_base, *EDIT, "--out", out, "-q", *force),
        ("laser", "apply", shared_base, "--edit", "q:0:0.5", "--out", out, "-q", *force),
        ("lowrank", shared_base, *PLAIN, "--out", out, "-q", *force),
        ("laser", "restore", shared_edited, "--out", out, "-q", *force),
    ]
    ended = together(*commands, room=room)
    codes = [code for code, _ in ended]
    if force:  # one after the other may replace what the one before wrote; none does while another writes
        assert 0 in codes and set(codes) <= {0, 2}
    else:
        assert sorted(codes) == [0, 2, 2, 2], ended
    for code, said in ended:
        assert code == 0 or "another run is writing" in said or "exists already" in said
        assert "Traceback" not in said
    shutil.rmtree(room)
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "out.run.json"}
    assert main(["inspect", str(out), "-q"]) == 0


def test_a_lock_that_its_holder_removes_is_held_by_one_only(tmp_path):
    """Whoever opened the file before it went does not hold it afterwards beside him who made it again."""
    path, count = tmp_path / "folder" / "lock", tmp_path / "count"
    count.write_text("0")

    def worker() -> int:
        taken = 0
        while taken < 60:
            try:
                with locked(path):
                    before = int(count.read_text())
                    count.write_text(str(before + 1))
                    taken += 1
                    path.unlink()
                    with contextlib.suppress(OSError):  # somebody has made it again
                        path.parent.rmdir()
            except Held:
                continue
        return 0

    children = [start(worker) for _ in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert count.read_text() == "180"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_says_how_to_go_on(base, text, tmp_path, number, code):
    out = tmp_path / "out"
    words = ["lowrank", base, "--keep", "0.8", "--align", "1", "--calibration", text, "--out", out]

    def action() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        ended = main([*map(str, words), "--refine", "100000"])
        sys.stderr.flush()
        return ended

    child, work = start(action), tmp_path / "out.kanna-work" / "run.json"
    deadline = time.monotonic() + 300
    while not work.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child, number)
    assert status_of(child) == code
    said = (tmp_path / "said").read_text()
    assert said.strip().splitlines()[-1].strip().startswith("kanna lowrank ") and said.strip().endswith(
        "--resume"
    )
    assert work.is_file() and not out.exists()
    assert [path.name for path in tmp_path.glob(".out.*")] == []


def test_a_real_process_ends_on_sigterm(shared_base, tmp_path):
    out = tmp_path / "out"
    words = [str(word) for word in ("lowrank", shared_base, *PLAIN, "--out", out, "-q")]
    process = subprocess.Popen([sys.executable, "-c", _WAITS, *words], stderr=subprocess.PIPE, text=True)
    work = tmp_path / "out.kanna-work" / "run.json"
    deadline = time.monotonic() + 300
    while not work.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said.strip().endswith("--resume")


def test_resumed_work_replaces_nothing_but_its_own(kanna, base, tmp_path, monkeypatch):
    """Killed in the middle; then somebody puts another model under the name."""
    import kanna.methods.lowrank.execute as execute

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(execute, "replace_blocks", interrupt)
        assert kanna("lowrank", base, *PLAIN, "--out", out).code == 130
    shutil.copytree(base, out)
    before = hashes(out)
    ran = kanna("lowrank", base, *PLAIN, "--out", out, "--resume")
    assert ran.code == 2 and "exists already" in ran.err
    assert hashes(out) == before
    shutil.rmtree(out)
    assert kanna("lowrank", base, *PLAIN, "--out", out, "--resume").code == 0


def test_work_for_an_output_that_came_meanwhile_is_kept(kanna, base, tmp_path, monkeypatch):
    import kanna.runs.runner as runner

    out, real = tmp_path / "out", runner.verify_output

    def meanwhile(*given: object, **options: object) -> object:
        shutil.copytree(base, out)
        return real(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "verify_output", meanwhile)
        ran = kanna("lowrank", base, *PLAIN, "--out", out, "-q")
    assert ran.code == 2 and "somebody else" in ran.err and "--resume" in ran.err
    assert hashes(out) == hashes(base)
    out.rename(tmp_path / "theirs")
    assert kanna("lowrank", base, *PLAIN, "--out", out, "--resume", "-q").code == 0


@pytest.mark.parametrize("removed", ["step-1", "run.json", "written", "lock"])
def test_a_kill_while_work_is_removed_leaves_a_run_to_end_or_none(kanna, shared_base, tmp_path, removed):
    """The output has its name; the folder of work is going."""
    import kanna.runs.unfinished as module

    out = tmp_path / "out"
    words = ("lowrank", shared_base, *PLAIN, "--out", out, "--threads", "1", "-q")  # as its children have

    def killed() -> int:
        unlink, clean = Path.unlink, module._clean

        def dying(path: Path, missing_ok: bool = False) -> None:
            if out.exists() and path.name == removed:
                os.kill(os.getpid(), signal.SIGKILL)
            unlink(path, missing_ok)

        def dying_at_once(*given: object) -> None:
            if out.exists() and removed == "step-1":
                os.kill(os.getpid(), signal.SIGKILL)
            clean(*given)

        Path.unlink, module._clean = dying, dying_at_once  # type: ignore[method-assign]
        return main([str(word) for word in words])

    assert status_of(start(killed)) == -signal.SIGKILL
    before, work = hashes(out), tmp_path / "out.kanna-work"
    assert (work / "run.json").exists() is (removed in ("step-1", "run.json"))
    if (work / "run.json").exists():
        assert kanna(*words, "--resume").code == 0 and not work.exists()
    else:
        assert kanna(*words).code == 2
    assert hashes(out) == before
    assert kanna(*words, "--force").code == 0 and not work.exists()


def test_one_directory_of_two_spellings(tmp_path, monkeypatch):
    """As where case does not count, or a directory is mounted twice: told by the disk, not by names."""
    from kanna.runs.in_the_way import refuse_input

    (tmp_path / "base").mkdir()
    (tmp_path / "other").mkdir()

    def samefile(one: Path, other: Path) -> bool:
        return str(one).lower() == str(other).lower()

    monkeypatch.setattr(Path, "samefile", samefile)
    for out in ("BASE", "Base/new"):
        with pytest.raises(Exception, match="never touched"):
            refuse_input(tmp_path / out, tmp_path / "base")
    with pytest.raises(Exception, match="never touched"):
        refuse_input(tmp_path / "BASE", tmp_path / "base" / "deep")
    refuse_input(tmp_path / "other", tmp_path / "base")
