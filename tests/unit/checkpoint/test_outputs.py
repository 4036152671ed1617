"""What `--force` may replace, and that either the old or the new directory has the name at every moment."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from killing import in_child

from kanna.checkpoint import exchange as exchanging
from kanna.checkpoint import writer
from kanna.checkpoint.exchange import exchange
from kanna.checkpoint.outputs import InTheWay, final_name, refuse_replacing
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError

MODEL = {
    "config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    "model-00001-of-00002.safetensors": "weights",
    "model-00002-of-00002.safetensors": "weights",
    "model.safetensors.index.json": "{}",
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "sentencepiece.bpe.model": "pieces",
    "README.md": "a card",
    "LICENSE": "words",
    "modules.json": "[]",
    "1_Pooling/config.json": "{}",
    "additional_chat_templates/tool_use.jinja": "template",
    ".gitattributes": "*.safetensors filter=lfs",
    ".cache/huggingface/download/config.json.metadata": "when",
}


def filled(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def lineage(files: dict[str, str]) -> str:
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    return json.dumps({"format_version": 1, "base": {"name": "b", "hash": "h"}, "files": digests})


def test_a_model_alone_may_be_replaced(tmp_path: Path) -> None:
    refuse_replacing(filled(tmp_path / "model", MODEL))


def test_what_a_lineage_records_may_be_replaced_whatever_its_name(tmp_path: Path) -> None:
    files = {"notes/x.dat": "", "odd": "", "model.safetensors": "weights"}
    beside = {
        "kanna.json": lineage(files),
        "recipe.yaml": "",
        "README.md": "edited",
        "eval-1.json": "{}",
        ".DS_Store": "",
        "__pycache__/own.pyc": "",
    }
    refuse_replacing(filled(tmp_path / "made", {**files, **beside}))


@pytest.mark.parametrize(
    "name",
    ["model.Q4.gguf", "onnx/model.onnx", "adapter_model.safetensors", "pytorch_model.bin", "vocab.json"],
)
def test_what_somebody_made_of_an_output_of_kanna_is_not_replaced(tmp_path: Path, name: str) -> None:
    """Such names belong to a model that was fetched; here the lineage says what belongs to it."""
    files = {"config.json": MODEL["config.json"], "model.safetensors": "weights"}
    out = filled(tmp_path / "out", {**files, "kanna.json": lineage(files), name: "hours of work"})
    with pytest.raises(InTheWay, match=f"holds {name.partition('/')[0]}.*not from kanna"):
        refuse_replacing(out)


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors"])
def test_a_model_that_was_trained_in_place_is_not_replaced(tmp_path: Path, name: str) -> None:
    files = {"config.json": MODEL["config.json"], name: "weights"}
    out = filled(tmp_path / "out", {**files, "kanna.json": lineage(files)})
    refuse_replacing(out)
    (out / name).write_text("weights, trained")
    with pytest.raises(InTheWay, match=f"holds {name}, which has changed since kanna wrote it"):
        refuse_replacing(out)


@pytest.mark.parametrize(
    "foreign",
    [
        ".git/HEAD",
        ".git",
        ".hg/store",
        ".svn/entries",
        "thesis.tex",
        "notes.txt",
        "train.py",
        "data/rows.jsonl",
        "rows.jsonl",
        "1_Pooling/.git/HEAD",
        "1_Pooling/mine.csv",
        ".cache/other/file",
    ],
)
@pytest.mark.parametrize("made_by_kanna", [False, True])
def test_one_foreign_thing_and_nothing_is_replaced(tmp_path: Path, foreign: str, made_by_kanna: bool) -> None:
    files = MODEL | ({"kanna.json": lineage(MODEL)} if made_by_kanna else {})
    out = filled(tmp_path / "out", {**files, foreign: "years of work"})
    with pytest.raises(InTheWay, match="holds "), output_directory(out, force=True):
        pytest.fail("entered")
    assert (out / foreign).read_text() == "years of work"


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"scripts": {}}', "README.md": "a project"},
        {"config.json": "not JSON"},
        {"kanna.json": "{}"},
        {"README.md": "words"},
        {},
    ],
)
def test_a_directory_that_is_no_model_is_not_replaced(tmp_path: Path, files: dict[str, str]) -> None:
    out = filled(tmp_path / "out", {**files})
    out.mkdir(exist_ok=True)
    with pytest.raises(InTheWay, match="not the directory of a model"):
        refuse_replacing(out)


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(filled(tmp_path / "model", MODEL))
    with pytest.raises(InTheWay, match="a link"), output_directory(tmp_path / "out", force=True):
        pytest.fail("entered")


def test_two_dots_are_no_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert final_name(tmp_path / "a" / "b" / "..") == (tmp_path / "a").resolve()
    assert final_name(tmp_path / "a" / "c") == tmp_path / "a" / "c"
    with pytest.raises(InputError, match="File name too long"):
        final_name(tmp_path / ("x" * 300))


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_is_refused_and_stays(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(InTheWay, match="by somebody else"),
        output_directory(out, force=force) as new,
    ):
        filled(new, MODEL)
        filled(out, {"config.json": MODEL["config.json"], "model.safetensors": "another's"})
    assert (out / "model.safetensors").read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_became_another_meanwhile_is_refused_and_stays(tmp_path: Path) -> None:
    out = filled(tmp_path / "out", MODEL)
    with (
        pytest.raises(InTheWay, match="by somebody else"),
        output_directory(out, force=True) as new,
    ):
        filled(new, MODEL)
        out.rename(tmp_path / "before")
        filled(out, {**MODEL, "LICENSE": "another's"})
    assert (out / "LICENSE").read_text() == "another's"


def test_what_was_put_into_the_old_one_meanwhile_stays(tmp_path: Path) -> None:
    out = filled(tmp_path / "out", MODEL)
    with pytest.raises(InTheWay, match="holds thesis"), output_directory(out, force=True) as new:
        filled(new, MODEL)
        filled(out, {"thesis.tex": "years"})
    assert (out / "thesis.tex").read_text() == "years"


def replaced_until(out: Path, function: str, after: bool) -> None:
    """Replace a directory in this process, and be killed right before, or after, a call of a function."""
    original = getattr(writer, function)

    def dying(*given: object) -> object:
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*given)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(writer, function, dying)
    with output_directory(out, force=True) as new:
        filled(new, MODEL | {"LICENSE": "new"})


@pytest.mark.parametrize(
    ("function", "after", "left"),
    [("_put_in_place", False, "old"), ("exchange", False, "old"), ("exchange", True, "new")],
)
def test_a_kill_leaves_one_of_both_whole_under_the_name(
    tmp_path: Path, function: str, after: bool, left: str
) -> None:
    out = filled(tmp_path / "out", MODEL | {"LICENSE": "old"})
    assert in_child(lambda: replaced_until(out, function, after)) == -signal.SIGKILL
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == MODEL | {"LICENSE": left}
    with output_directory(out, force=True) as new:
        filled(new, MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_system_without_exchange_gives_the_old_one_its_name_back(tmp_path: Path) -> None:
    """Killed between the two renames, which is the one moment in which neither has it."""
    out = filled(tmp_path / "out", MODEL | {"LICENSE": "old"})

    def killed() -> None:
        writer.exchange = lambda *_: False
        replaced_until(out, "_name", False)

    assert in_child(killed) == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(InTheWay, match="exists already"), output_directory(out):
        pytest.fail("entered")
    assert (out / "LICENSE").read_text() == "old"


def test_a_system_without_exchange_replaces_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "exchange", lambda *_: False)
    out = filled(tmp_path / "out", MODEL)
    with output_directory(out, force=True) as new:
        filled(new, {"config.json": "new"})
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_exchange_says_where_it_cannot_and_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, {"a/x": "", "b/y": ""})
    assert exchange(tmp_path / "a", tmp_path / "b") is True
    assert (tmp_path / "a" / "y").exists() and (tmp_path / "b" / "x").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "nowhere")
    monkeypatch.setattr(exchanging.ctypes, "CDLL", lambda *_, **__: object())
    assert exchange(tmp_path / "a", tmp_path / "b") is False
