"""Rows become examples: what is scored, what is cut, and what is refused."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import kanna.demo
from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.tokens.encode import Encoder
from kanna.training.examples import answered, labelled, text_windows

TOKENIZER = AutoTokenizer.from_pretrained(Path(kanna.demo.__file__).parent / "model")


def row(prompt: str, answer: str) -> Row:
    return read_row("here", {"prompt": prompt, "answer": answer})


def test_what_is_scored_is_what_the_evaluation_scores_and_the_end() -> None:
    encoder = Encoder(TOKENIZER, 64)
    (example,) = answered([row("The price is", "12 coins")], encoder).all
    (piece,) = encoder.pieces("The price is", ["12 coins"])
    scored = tuple(token for token, wanted in zip(example.ids, example.scored, strict=True) if wanted)
    assert scored == (*piece.target, TOKENIZER.eos_token_id)
    assert example.ids == (*piece.context, *piece.target, TOKENIZER.eos_token_id)
    assert example.targets == len(scored)


def test_the_right_choice_is_the_answer() -> None:
    choice = read_row("here", {"prompt": "The price is", "choices": ["1 coin", "12 coins"], "label": 1})
    encoder = Encoder(TOKENIZER, 64)
    assert answered([choice], encoder) == answered([row("The price is", "12 coins")], encoder)


def test_a_long_prompt_loses_its_beginning_and_is_counted() -> None:
    rows = [row("one two three four five six seven eight nine ten " * 3, "yes"), row("one", "yes")]
    whole, short = answered(rows, Encoder(TOKENIZER, 4096)), answered(rows, Encoder(TOKENIZER, 16))
    assert (whole.cut, short.cut) == (0, 1)
    cut, uncut = short.all[0], whole.all[0]
    assert len(cut) == 17  # the last token is predicted, not read
    assert cut.ids == uncut.ids[:1] + uncut.ids[-16:]  # what begins texts stays
    assert cut.targets == uncut.targets


def test_rows_that_cannot_be_learnt_are_named() -> None:
    encoder = Encoder(TOKENIZER, 16)
    with pytest.raises(InputError, match="row 2 has no prompt"):
        answered([row("one", "yes"), Row("plain text")], encoder)
    with pytest.raises(InputError, match=r"row 1: an answer has \d+ tokens"):
        answered([row("one", "two three four five six seven eight " * 5)], encoder)
    with pytest.raises(InputError, match="every one of the 1 prompts"):
        answered([row("one two three four five six seven eight nine ten " * 3, "yes")], encoder)


def test_text_is_packed_without_a_gap() -> None:
    texts = [Row("one two three four five six seven eight"), Row("nine ten"), Row("eleven")]
    windows = text_windows(texts, TOKENIZER, 5)
    stream = [
        token for text in texts for token in [*TOKENIZER(text.text)["input_ids"], TOKENIZER.eos_token_id]
    ]
    joined = [token for example in windows.all for token in example.ids]
    assert joined == stream[: len(joined)] and len(stream) - len(joined) <= 1
    assert all(not example.scored[0] and all(example.scored[1:]) for example in windows.all)


def test_labels_count_once() -> None:
    made = labelled([row("one two three four five six", "x"), row("one", "x")], TOKENIZER, [2, 0], 4)
    assert [example.label for example in made.all] == [2, 0]
    assert made.targets == 2 and made.cut == 1
    assert max(map(len, made.all)) <= 4
    whole = labelled([row("one two three four five six", "x")], TOKENIZER, [2], 4096).all[0].ids
    assert made.all[0].ids == whole[:1] + whole[-3:]  # what begins texts stays


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    most = max(TOKENIZER("one two")["input_ids"])
    with pytest.raises(InputError, match="row 1: the token"):
        answered([row("one", "two")], Encoder(TOKENIZER, 64, vocabulary=most))
    with pytest.raises(InputError, match="the token"):
        text_windows([Row("one two")], TOKENIZER, 8, vocabulary=most)
    with pytest.raises(InputError, match="the token"):
        labelled([row("one two", "x")], TOKENIZER, [0], 8, vocabulary=most)
