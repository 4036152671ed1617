"""Standard streams that nobody reads, that are closed, full, or know ASCII only."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from kanna.cli.main import main
from kanna.terminal.literal import literal
from kanna.terminal.streams import Output

PROGRAM = (sys.executable, "-m", "kanna")


def started(words: tuple[object, ...], **streams: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*PROGRAM, *map(str, words)], stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload, no-any-return]


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A task to look at, for which nothing heavy is imported."""
    path = tmp_path / "task.jsonl"
    rows = ({"prompt": f"What is {number}?", "answer": str(number)} for number in range(40))
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "words", [("task", "check"), ("task", "check", "--json"), ("--version",), ("inspect", "--help")]
)
def test_nobody_reads(questions, words):
    """As `kanna task check FILE | head`; the same code whether it shows while writing, or at the very end."""
    file = (questions,) if words[0] == "task" else ()
    process = started((*words, *file), stdout=unread())
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("words", [("task", "check"), ("task", "check", "--json")])
def test_standard_output_is_closed(questions, words):
    process = started((*words, questions), preexec_fn=lambda: os.close(1))
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


def test_standard_error_is_closed(shared_base):
    """Nothing that belongs there gets into the result."""
    words = [*PROGRAM, "inspect", str(shared_base), "--spectra", "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2), check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["blocks"] == 2


def quick(model: Path, out: Path) -> list[str]:
    return [*PROGRAM, "lowrank", str(model), "--keep", "0.8", "--method", "plain", "--out", str(out)]


def test_nobody_reads_what_is_said_either(shared_base, tmp_path):
    """As `kanna lowrank ... 2>&1 | head -1`: the work is done all the same."""
    pipe = unread()
    done = subprocess.run(quick(shared_base, tmp_path / "out"), stdout=pipe, stderr=pipe, check=False)
    assert done.returncode == 141
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_standard_error_is_full(shared_base, tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            quick(shared_base, tmp_path / "out"), stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert done.returncode == 0 and b"out" in done.stdout and (tmp_path / "out").is_dir()


def test_a_refusal_that_nobody_reads_keeps_its_code(tmp_path):
    words = [*PROGRAM, "inspect", str(tmp_path / "nowhere")]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=unread(), check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_standard_output_is_full(questions):
    with Path("/dev/full").open("wb") as full:
        process = started(("task", "check", questions), stdout=full)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.decode().strip() == "kanna: error: standard output cannot be written: No space left on device"


def test_a_refusal_keeps_its_code_where_nobody_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert sys.stdout is None


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"caf\\xe9 \\u4f60"), ("latin-1", b"caf\xe9 \\u4f60"), ("utf-8", "café 你".encode())],
)
def test_letters_that_an_encoding_lacks_are_spelled(encoding, written):
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, encoding=encoding))
    assert output.write("café 你") == 6
    output.flush()
    assert raw.getvalue() == written and output.encoding == encoding


def test_json_is_json_in_ascii_too(shared_base, tmp_path):
    """A name with other letters stands in the result."""
    (tmp_path / "café").symlink_to(shared_base)
    named = tmp_path / "models" / "café"
    named.parent.mkdir()
    named.mkdir()
    for file in shared_base.iterdir():
        (named / file.name).symlink_to(file)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [*PROGRAM, "inspect", str(named), "--json"]
    done = subprocess.run(words, capture_output=True, env=environment, check=True)
    assert done.stdout.isascii() and json.loads(done.stdout)["model"] == "café"


@pytest.mark.parametrize(
    "text",
    [
        "down:-1:0.5",
        ":-1:",
        "a:x:b:100:c",
        "MODEL:1",
        "[MODEL] [bold] [/] \\[a]",
        "q,k@3-:mp; x: y",
        "",
        "::",
    ],
)
def test_help_says_what_is_written(text):
    assert Text.from_markup(literal(text)).plain == text


_ALL_HELP = """
import sys
from kanna.cli.main import main, program

def words(command, before):
    yield before
    for name, inner in getattr(command, "commands", {}).items():
        load = getattr(inner, "_load", None)
        yield from words(inner if load is None else load(), (*before, name))

for line in words(program(), ()):
    print("::", " ".join(line), flush=True)
    code = main([*line, "--help"])
    print("::", code, flush=True)
"""


@pytest.fixture(scope="module")
def all_help() -> str:
    """What `--help` of every command says where a terminal has 80 columns and knows ASCII only."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", _ALL_HELP], capture_output=True, env={**os.environ, **plain}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode("ascii")


def test_every_help_in_ascii(all_help: str) -> None:
    parts = all_help.split(":: ")[1:]  # in turns: the words of a command and its help, then the exit code
    called, codes = parts[::2], parts[1::2]
    assert len(called) == len(codes) > 20
    assert all(code.startswith("0\n") for code in codes), codes
    assert all("Usage: kanna" in one for one in called)
    assert max(len(line) for line in all_help.splitlines()) <= 80
    assert "not blink" not in all_help and "\\x" not in all_help and "\\u" not in all_help


def test_every_flag_and_its_help_are_there(all_help: str) -> None:
    """Word by word, whatever the columns make of the lines: an example of a flag is never made a picture."""
    from kanna.cli.main import program
    from kanna.terminal.folded import PANEL

    def commands(command: object, before: tuple[str, ...]) -> "list[tuple[tuple[str, ...], object]]":
        found: list[tuple[tuple[str, ...], object]] = []
        for name, inner in getattr(command, "commands", {}).items():
            real: Callable[[], object] | None = getattr(inner, "_load", None)
            one = inner if real is None else real()
            nested = commands(one, (*before, name))
            found += nested or [((*before, name), one)]
        return found

    said = {part.partition("\n")[0]: part for part in all_help.split(":: ")[1::2]}
    for words, command in commands(program(), ()):
        page = "".join(character for character in said[" ".join(words)] if character not in " \n|")
        params = [one for one in command.params if not getattr(one, "hidden", False)]  # type: ignore[attr-defined]
        shown = [one for one in params if getattr(one, "rich_help_panel", None) != PANEL]
        assert len(shown) == len(params) or "Commonoptions:--json" in page
        for parameter in shown:
            assert parameter.opts[0] in page or not parameter.opts[0].startswith("--"), (
                words,
                parameter.name,
            )
            text = (getattr(parameter, "help", None) or "").replace("|", "")
            assert all(word in page for word in text.split()), (words, parameter.name, text)
