"""The program around the verbs: flags, exit codes, what is imported, interruption."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kanna as package
from kanna.cli.main import main
from kanna.errors import KannaError
from kanna.heard import Lines, duration, remaining
from kanna.progress import going
from kanna.runs.record import Stages
from kanna.terminal.progress import progress_on

VERBS = (
    "inspect",
    "lowrank",
    "laser",
    "eval",
    "generate",
    "export",
    "quantize",
    "tune",
    "scales",
    "explore",
    "run",
    "report",
    "cache",
    "demo",
)
LASER = ("apply", "search", "compose", "analyze", "restore")
HEAVY = ("torch", "transformers", "matplotlib")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from kanna.cli.main import main\n"
        f"lines = [[], ['--help'], ['--version'], *([verb, '--help'] for verb in {VERBS}),"
        f" *(['laser', verb, '--help'] for verb in {LASER})]\n"
        "codes = [main(words) for words in lines]\n"
        f"print([m for m in {HEAVY} if m in sys.modules], codes[1:], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip().endswith(f"[] {[0] * (len(VERBS) + len(LASER) + 2)}")
    assert all(verb in ran.stdout for verb in (*VERBS, *LASER))


def test_importing_kanna_imports_nothing_heavy():
    code = f"import sys, kanna; print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_version(kanna):
    ran = kanna("--version")
    assert ran.code == 0
    assert ran.out.splitlines()[0] == f"kanna {package.__version__}"


@pytest.mark.parametrize(
    "words",
    [
        ("unknown",),
        ("inspect",),
        ("inspect", "M", "--unknown"),
        ("generate", "M"),
        ("export", "D"),
        ("laser", "unknown"),
        ("laser", "search", "M"),
        ("laser", "compose", "M", "--task", "T"),
    ],
)
def test_usage_errors_exit_2(kanna, words):
    ran = kanna(*words)
    assert ran.code == 2 and ran.out == "" and ran.err


def test_common_flags_before_and_after_the_verb(kanna, shared_base):
    after = kanna("inspect", shared_base, "--json", "-q", "--threads", 1)
    before = kanna("--json", "-q", "--threads", 1, "inspect", shared_base)
    assert after == before and after.json["schema_version"] == 1


def test_quiet_says_nothing_on_stderr(kanna, base, tmp_path):
    words = ("--keep", 0.7, "--method", "plain", "--align", 1, "--out", tmp_path / "out")
    assert kanna("lowrank", base, *words, "-q").err == ""


def test_log_file(kanna, tmp_path):
    log = tmp_path / "kanna.log"
    assert kanna("cache", "--log-file", log).code == 0 and log.is_file()
    assert kanna("cache", "--log-file", tmp_path / "missing" / "kanna.log").code == 2


def test_an_unexpected_error_is_one_line(kanna, shared_base, monkeypatch):
    import kanna.runs.inspect as module

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the roof\nis on fire")

    monkeypatch.setattr(module, "inspect", fail)
    ran = kanna("inspect", shared_base)
    assert ran.code == 1 and ran.out == ""
    assert ran.err.strip().splitlines() == [
        "kanna: error: unexpected RuntimeError: the roof is on fire; run with -v for the traceback"
    ]
    assert "Traceback" in kanna("inspect", shared_base, "-v").err


def test_our_own_errors_exit_1(kanna, shared_base, monkeypatch):
    import kanna.runs.inspect as module

    def fail(*_: object, **__: object) -> None:
        raise KannaError("a bug")

    monkeypatch.setattr(module, "inspect", fail)
    ran = kanna("inspect", shared_base)
    assert ran.code == 1 and ran.err.strip() == "kanna: error: a bug"


def test_cache_refuses_other_actions_and_keeps_foreign_files(kanna):
    root = Path(os.environ["KANNA_CACHE"])
    (root / "spectra").mkdir(parents=True)
    (root / "spectra" / "one").write_bytes(b"12345")
    (root / "mine.txt").write_text("mine")
    assert kanna("cache", "burn").code == 2
    assert kanna("cache", "clear", "--json").json["bytes"] == {
        "statistics": 0,
        "spectra": 5,
        "evaluations": 0,
        "compiled": 0,
    }
    assert sorted(path.name for path in root.iterdir()) == ["mine.txt"]


def test_interrupted_run_prints_what_resumes_it(kanna, base, tmp_path, monkeypatch):
    import kanna.methods.lowrank.execute as execute

    real = execute.replace_blocks

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "a new" / "out"
    words = ["lowrank", base, "--keep", 0.7, "--method", "plain", "--align", 1, "--out", out]
    monkeypatch.setattr(execute, "replace_blocks", interrupt)
    ran = kanna(*words)
    assert ran.code == 130
    command = ran.err.strip().splitlines()[-1].strip()
    assert command.startswith("kanna lowrank ") and command.endswith(f"--out '{out}' --resume")
    assert kanna(*words).code == 2  # unfinished work is in the way
    again = kanna(*words, "--resume")
    assert again.code == 130 and again.err.count("--resume") == 1
    monkeypatch.setattr(execute, "replace_blocks", real)
    assert kanna(*words, "--resume").code == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.run.json"]


def test_interrupted_recipe(kanna, base, tmp_path, monkeypatch):
    import kanna.methods.lowrank.execute as execute

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    step = {"lowrank": {"keep": 0.7, "align": 1, "method": "plain"}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(base), "out": str(tmp_path / "out"), "steps": [step]}))
    monkeypatch.setattr(execute, "replace_blocks", interrupt)
    ran = kanna("run", recipe)
    assert ran.code == 130 and f"kanna run {recipe} --resume" in ran.err


def test_interrupted_before_anything_was_begun(kanna, base, tmp_path, monkeypatch):
    import kanna.methods.lowrank.step as module

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "make_plan", interrupt)
    ran = kanna("lowrank", base, "--keep", 0.7, "--method", "plain", "--out", tmp_path / "out")
    assert ran.code == 130 and "--resume" not in ran.err and "nothing was written" in ran.err


def test_a_real_interrupt(base, text, tmp_path):
    """SIGINT to a process in the middle of its work."""
    out = tmp_path / "out"
    words = ["lowrank", base, "--keep", "0.8", "--align", "1", "--calibration", text, "--out", out]
    command = [sys.executable, "-m", "kanna", *map(str, words), "--refine", "100000"]
    # a shell starts what it puts in the background with SIGINT ignored, and children inherit that
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed
    )
    work = tmp_path / "out.kanna-work" / "run.json"
    deadline = time.monotonic() + 300
    while not work.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stdout == "" and "Traceback" not in stderr
    assert stderr.strip().endswith("--refine 100000 --resume")
    assert not out.exists()


def test_nobody_reads_any_more():
    command = [sys.executable, "-m", "kanna", "cache", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.returncode == 141 and "Traceback" not in ran.stderr and "Exception" not in ran.stderr


def test_progress_is_at_most_one_line_every_few_seconds():
    now, stream = [0.0], io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    for done in range(101):
        lines("survey", done, 100)
        now[0] += 1.0
    said = stream.getvalue().splitlines()
    assert said[:2] == ["survey 0/100", "survey 5/100, about 1:35 min left in this stage"]
    assert len(said) == 21


def test_how_a_stage_goes_makes_no_other_stage_of_it():
    now, stream = [0.0], io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    for done in range(11):
        lines(going("train", f"loss {20 - done}", ""), done, 10)
        now[0] += 1.0
    assert stream.getvalue().splitlines() == [
        "train 0/10, loss 20",
        "train 5/10, loss 15, about 5 s left in this stage",
        "train 10/10, loss 10",
    ]
    stages = Stages(lambda *_: None)
    for loss in (3, 2, 1):
        stages.report(going("train", f"loss {loss}"), 1, 1)
    stages.report("verify", 0, 1)
    assert list(stages.seconds) == ["train"]


def test_progress_bars_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress_on(stream) as report:
        report("survey", 0, 2)
        report("survey", 2, 2)
        report(going("train", "loss 2.5"), 1, 2)
        report(going("train", "loss 1.5"), 2, 2)
    assert "survey" in stream.getvalue() and "2/2" in stream.getvalue()
    assert "so far" in stream.getvalue() and "took 0 s" in stream.getvalue()
    drawn = stream.getvalue().rpartition("survey")[2]  # the last time that all bars were drawn
    assert drawn.count("train") == 1 and "loss 1.5" in drawn and "loss 2.5" not in drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01 min"), (3723, "1:02:03 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_remaining():
    assert remaining(10, 5, 10) == 20
    assert remaining(10, 0, 10) is None and remaining(10, 5, 0) is None


def test_main_returns_the_exit_code(capsys):
    assert main(["explore"]) == 2


def test_the_list_says_of_each_verb_what_its_help_says():
    from kanna.cli.main import VERBS, program

    group = program()
    for name, (place, summary) in VERBS.items():
        real = group.commands[name]._load()
        said = " ".join((real.help or "").split("\n\n")[0].split())
        assert said == summary, place
