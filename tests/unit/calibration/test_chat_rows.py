"""With --chat, what a model is calibrated on is what it will read: rows as the chat template writes them."""

import json
from pathlib import Path
from typing import Any

import chatting
import pytest
import yaml

import kanna
from kanna.calibration.text import windows_of
from kanna.checkpoint.reader import Checkpoint
from kanna.cli.main import main
from kanna.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"prompt": "how are you", "answer": " fine"},
    {"prompt": "hi", "answers": ["hi you", "hi"]},
    {"instruction": "be brief", "input": "hi", "output": "bye"},
    chatting.said("hi", "how are you", "fine", "good", system="be well"),
]
WRITTEN = [
    "<s> <|user|> how are you <|end|> and <|assistant|> fine <|end|> and",
    "<s> <|user|> hi <|end|> and <|assistant|> hi you <|end|> and",
    "<s> <|user|> be brief hi <|end|> and <|assistant|> bye <|end|> and",
    "<s> <|system|> be well <|end|> and <|user|> hi <|end|> and <|assistant|> how are you <|end|> and "
    "<|user|> fine <|end|> and <|assistant|> good <|end|> and",
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS * 20))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting.save_model(tmp_path_factory.mktemp("chat") / "model")


def read(model: Path, rows: Path, chat: bool) -> set[tuple[int, ...]]:
    windows = windows_of(Checkpoint.open(model), rows, 4096, None, 0, chat)
    return {tuple(ids[seen].tolist()) for ids, seen in zip(windows.ids, windows.mask, strict=True)}


def test_rows_are_as_the_template_writes_them(model: Path, rows: Path) -> None:
    assert read(model, rows, chat=True) == {chatting.ids(text) for text in WRITTEN}
    plain = read(model, rows, chat=False)
    assert chatting.ids("how are you fine") in plain and chatting.ids(WRITTEN[0]) not in plain


def test_text_is_read_as_it_stands(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hi you how are you fine and good bye " * 60)
    kept = [windows_of(Checkpoint.open(model), text, 4096, None, 0, chat).digest for chat in (True, False)]
    assert kept[0] == kept[1]


def test_without_a_template_it_is_refused(rows: Path, tmp_path: Path) -> None:
    without = chatting.save_model(tmp_path / "without", template=None)
    with pytest.raises(InputError, match=r"the rows of .*rows\.jsonl are read through a chat template"):
        windows_of(Checkpoint.open(without), rows, 4096, None, 0, True)


@pytest.mark.parametrize(
    ("verb", "settings"),
    [("lowrank", ["--keep", "0.7", "--align", "1"]), ("quantize", ["--bits", "4", "--group", "8"])],
)
def test_verbs_calibrate_on_the_chat_and_their_recipe_does_so_again(
    model: Path, rows: Path, tmp_path: Path, verb: str, settings: list[str]
) -> None:
    words = [verb, str(model), "--calibration", str(rows), *settings, "-q"]
    for name, more in (("plain", []), ("chat", ["--chat"])):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    data = {
        name: json.loads((tmp_path / name / "kanna.json").read_text())["steps"][0]["data_hash"]
        for name in ("plain", "chat")
    }
    assert data["plain"] != data["chat"]
    recipe = yaml.safe_load((tmp_path / "chat" / "recipe.yaml").read_text())
    assert recipe["evaluation"] == {"chat": True}
    kanna.run(tmp_path / "chat" / "recipe.yaml", out=tmp_path / "again")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("chat", "again", "plain")]
    assert weights[0] == weights[1] != weights[2]
