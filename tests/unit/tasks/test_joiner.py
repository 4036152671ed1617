"""What stands between prompt and answer, said by hand: scored and written behind the same tokens."""

import json
from pathlib import Path

import pytest

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.tasks.data.rows import joined
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.tokenizer import load_tokenizer

DEMO = Path(kanna.__file__).parent / "demo" / "model"


@pytest.mark.parametrize(
    ("prompt", "answer", "joiner", "whole"),
    [
        ("2+2=", "4", "", "2+2=4"),
        ("2+2= ", " 4", "", "2+2=4"),
        ("Answer:", "4", "\n", "Answer:\n4"),
        ("Answer:", "4", "  ", "Answer:  4"),
        ("Answer:\n", "4", "", "Answer:\n4"),
        ("\u7b54\u3048:", "\u96ea", " ", "\u7b54\u3048: \u96ea"),
        ("2+2=", "4", None, "2+2= 4"),
    ],
)
def test_joined_by_hand(prompt: str, answer: str, joiner: str | None, whole: str) -> None:
    assert joined(prompt, answer, joiner) == whole


@pytest.mark.parametrize("joiner", ["", "\n", " ", ": ", None])
def test_what_is_scored_follows_what_writing_begins_with(joiner: str | None) -> None:
    tokenizer = load_tokenizer(DEMO)
    encoder = Encoder(tokenizer, 128, joiner=joiner)
    prompt = "How many tiles does Eva have now? Answer: "
    (piece,) = encoder.pieces(prompt, ["15"])
    read = encoder.start_of(prompt)
    assert list(piece.context) == read[: len(piece.context)] and len(read) - len(piece.context) <= 1
    assert tokenizer.decode(piece.context + piece.target) == tokenizer.decode(
        encoder.ids(joined(prompt, "15", joiner))
    )
    if joiner == "\n":
        assert tokenizer.decode(read).endswith("Answer:\n")


def test_a_chat_template_says_it_itself() -> None:
    tokenizer = load_tokenizer(DEMO)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m['content'] }} A: {% endfor %}"
    with_joiner = Encoder(tokenizer, 128, chat=True, joiner="\n").pieces("Why?", ["15"])
    assert with_joiner == Encoder(tokenizer, 128, chat=True).pieces("Why?", ["15"])


def test_masks_stand_behind_it() -> None:
    tokenizer = load_tokenizer(DEMO)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    for joiner, before, answer in (("", "Is it? Answer:", "15"), ("\n", "Is it? Answer:\n", "15")):
        blank = Cloze(tokenizer, 128, joiner=joiner).blank("Is it? Answer: ")
        assert (blank.before, blank.answer(" 15")) == (before, answer)
    marked = Cloze(tokenizer, 128, joiner="\n").blank("It is <mask> here")
    assert marked == Cloze(tokenizer, 128).blank("It is <mask> here")


def test_it_changes_scores_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = DEMO.parent / "data" / "questions.jsonl"
    task = tmp_path / "task.jsonl"
    task.write_text("".join(questions.read_text().splitlines(keepends=True)[:40]))
    found = {}
    for joiner in ("", " ", None):
        words = [] if joiner is None else ["--joiner", joiner]
        assert main(["eval", str(DEMO), "--task", str(task), *words, "--json", "-q", "--fresh"]) == 0
        (found[joiner],) = json.loads(capsys.readouterr().out)["tasks"]
    assert found[" "]["metrics"] == found[None]["metrics"]
    assert found[""]["metrics"]["greedy"] < found[None]["metrics"]["greedy"] - 0.2
    assert found[""]["settings"]["joiner"] == "" and "joiner" not in found[None]["settings"]


def test_where_it_says_nothing_it_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Ada has three tiles and buys four more of them.")
    with pytest.raises(InputError, match="there are none"):
        kanna.evaluate(DEMO, text, kanna.EvalOptions(joiner=""))
    rows = [{"prompt": "Why?", "answer": "15"}]
    with pytest.raises(InputError, match=r"has no chat template|said by the chat template"):
        kanna.evaluate(DEMO, rows, kanna.EvalOptions(joiner="", chat=True))
