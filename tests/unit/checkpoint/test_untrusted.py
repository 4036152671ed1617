"""A checkpoint from a stranger runs no code, asks nothing, fetches nothing, and is what was checked.

SECURITY.md names these tests.
"""

import builtins
import json
import pickle
import shutil
import socket
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.skeleton import skeleton
from kanna.tasks.tokens.tokenizer import load_tokenizer

DEMO = Path(str(files("kanna.demo"))) / "model"
Change = Callable[[dict[str, Any]], object]


def edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A model directory with code in it, which leaves a file behind when it runs."""
    directory = tmp_path / "stranger"
    shutil.copytree(DEMO, directory)
    mark = tmp_path / "ran"
    (directory / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    return directory


@pytest.fixture
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked says yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


@pytest.mark.usefixtures("_nobody_is_asked")
@pytest.mark.parametrize("load", [kanna.load, load_tokenizer])
def test_code_of_a_tokenizer_is_not_run(stranger: Path, load: Callable[[Path], object]) -> None:
    own = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    edit(stranger / "tokenizer_config.json", lambda config: config.update(own))
    with pytest.raises(InputError, match="tokenizer in"):
        load(stranger)
    assert not (stranger.parent / "ran").exists()


@pytest.mark.usefixtures("_nobody_is_asked")
def test_code_of_a_model_is_not_run(stranger: Path) -> None:
    """Of a type that transformers knows, its own class is taken; of another, none."""
    own = {"auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}
    edit(stranger / "config.json", lambda config: config.update(own))
    assert type(kanna.load(stranger)[0]).__module__ == "transformers.models.llama.modeling_llama"
    edit(stranger / "config.json", lambda config: config.update(model_type="own"))
    with pytest.raises(InputError, match="code of its own"):
        kanna.load(stranger)
    assert not (stranger.parent / "ran").exists()


class _Payload:
    """Writes the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin", "adapter_model.bin"])
def test_a_pickle_beside_the_weights_is_not_read(stranger: Path, name: str) -> None:
    mark = stranger.parent / "ran"
    (stranger / name).write_bytes(pickle.dumps(_Payload(mark)))
    kanna.load(stranger)
    assert not mark.exists()
    pickle.loads((stranger / name).read_bytes())
    assert mark.exists()


def test_loading_connects_to_nothing(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    _, tokenizer = kanna.load(stranger)
    assert tokenizer is not None


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_kernel_from_the_hub_is_refused(stranger: Path, key: str, inside: bool) -> None:
    name = "someone/kernel"
    asked: dict[str, Any] = {key: {"": name} if inside else name}
    edit(stranger / "config.json", lambda config: config.update({"text_config": asked} if inside else asked))
    with pytest.raises(InputError, match="asks for a kernel from the hub: 'someone/kernel'"):
        skeleton(stranger)


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_kernels_of_the_libraries_may_be_named(stranger: Path, name: str | None) -> None:
    edit(stranger / "config.json", lambda config: config.update(attn_implementation=name))
    skeleton(stranger)


def test_weights_are_those_that_were_checked(stranger: Path) -> None:
    edit(stranger / "config.json", lambda config: config.update(transformers_weights="adapter_model.bin"))
    with pytest.raises(InputError, match="transformers_weights"):
        Checkpoint.open(stranger)


def test_a_directory_that_stands_for_another_model(stranger: Path) -> None:
    elsewhere = {"base_model_name_or_path": str(DEMO), "peft_type": "LORA"}
    (stranger / "adapter_config.json").write_text(json.dumps(elsewhere))
    with pytest.raises(InputError, match="adapter_config"):
        Checkpoint.open(stranger)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_lineage_names_no_file_outside(stranger: Path, absolute: bool) -> None:
    outside = stranger.parent / "private"
    outside.write_text("secret")
    name = str(outside) if absolute else "../private"
    record = lineage.Lineage(
        base=lineage.Base(name="base", hash="0"), files={name: lineage.file_digest(outside)}
    )
    (stranger / lineage.FILE).write_text(record.model_dump_json())
    with pytest.raises(InputError, match="outside the directory"):
        lineage.verify(stranger)
