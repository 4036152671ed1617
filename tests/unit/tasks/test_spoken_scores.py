"""Scores of conversations and instructions, against a plain loop over the model's own logits."""

import json
from pathlib import Path

import chatting
import pytest
import torch
from chatting import ids, said
from tiny_encoders import save_encoder

import kanna
from kanna.errors import InputError
from kanna.runs.criteria import criteria_of
from kanna.tasks.options import EvalOptions

TALKS = [said("hi", "fine", "how are you", "well and good"), said("you", "bye", system="be brief")]
ASKED = [
    "<s> <|user|> hi <|end|> and <|assistant|> fine <|end|> and"
    " <|user|> how are you <|end|> and <|assistant|>",
    "<s> <|system|> be brief <|end|> and <|user|> you <|end|> and <|assistant|>",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of these models that were kept before are no scores of this code."""
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))


def as_file(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loss(directory: Path, asked: str, answer: str) -> float:
    """Nats of the answer behind what was asked, in words."""
    model, _ = kanna.load(directory)
    before, after = ids(asked), ids(answer)
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(after))


def test_the_last_turn_is_scored_behind_all_before_it(tmp_path: Path) -> None:
    model, task = chatting.save_model(tmp_path / "model"), as_file(tmp_path / "talk.jsonl", TALKS)
    options = EvalOptions(metric="log_loss")
    (score,) = kanna.evaluate(model, [task], options).scores
    wanted = [
        loss(model, asked, row["messages"][-1]["content"]) for asked, row in zip(ASKED, TALKS, strict=True)
    ]
    assert [record.values["log_loss"] for record in score.records] == pytest.approx(wanted, abs=1e-4)
    assert score.settings["chat"] is True
    (again,) = kanna.evaluate(model, [task], EvalOptions(metric="log_loss", chat=True)).scores
    assert again.metrics == score.metrics  # it is put there once


def test_what_is_written_is_written_behind_the_template(tmp_path: Path) -> None:
    model, task = chatting.save_model(tmp_path / "model"), as_file(tmp_path / "talk.jsonl", TALKS)
    loaded, tokens = kanna.load(model)
    told = []
    for asked in ASKED:
        given = torch.tensor([ids(asked)])
        out = loaded.generate(given, max_new_tokens=8, do_sample=False, pad_token_id=0)
        told.append(tokens.decode(out[0, given.shape[1] :], skip_special_tokens=True))
    (score,) = kanna.evaluate(model, [task], EvalOptions(metric="exact", new_tokens=8)).scores
    assert [record.predicted.split() for record in score.records] == [text.split() for text in told]
    assert score.settings["stop"] == []  # what is said may have several lines


def test_instructions_are_laid_out_or_said(tmp_path: Path) -> None:
    row = {"instruction": "hi", "input": "you", "output": "fine"}
    model, task = chatting.save_model(tmp_path / "model"), as_file(tmp_path / "told.jsonl", [row])
    for chat, asked in ((False, "hi you Answer:"), (True, "<s> <|user|> hi you <|end|> and <|assistant|>")):
        (score,) = kanna.evaluate(model, [task], EvalOptions(metric="log_loss", chat=chat)).scores
        assert score.metrics["log_loss"] == pytest.approx(loss(model, asked, "fine"), abs=1e-4)


def test_two_models_are_compared_on_them(tmp_path: Path) -> None:
    """Each by its own template."""
    other = chatting.CHAT.replace("{{ bos_token }}", "")
    models = [chatting.save_model(tmp_path / "a"), chatting.save_model(tmp_path / "b", other, seed=1)]
    task = as_file(tmp_path / "talk.jsonl", TALKS)
    compared = kanna.compare(*models, criteria_of([str(task)], "1pt"), EvalOptions(metric="log_loss"))
    wanted = [
        (loss(model, start + ASKED[0][3:], "well and good") + loss(model, start + ASKED[1][3:], "bye")) / 2
        for model, start in zip(models, ("<s>", ""), strict=True)
    ]
    (found,) = compared.tasks
    assert [found.base_value, found.new_value] == pytest.approx(wanted, abs=1e-4)


def test_models_without_a_chat_refuse_them_before_they_are_loaded(tmp_path: Path) -> None:
    task = as_file(tmp_path / "talk.jsonl", TALKS)
    with pytest.raises(InputError, match="read through a chat template, and the tokenizer has none"):
        kanna.evaluate(chatting.save_model(tmp_path / "model", None), [task])
    with pytest.raises(InputError, match=r"the rows of talk\.jsonl are conversations"):
        kanna.evaluate(save_encoder(tmp_path / "masked", "Bert"), [task])
