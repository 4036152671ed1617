"""Conversations as examples, against masks that were written by hand."""

import chatting
import pytest
from chatting import CHAT, ids, said

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.tokens.encode import Encoder
from kanna.training.examples import Example, answered

TALK = said("hi you", "how are you", "fine and you", "good bye")


def example(row: dict[str, object], template: str | None = CHAT, chat: bool = False) -> Example:
    encoder = Encoder(chatting.tokenizer(template), 64, chat)
    return answered([read_row("here", row)], encoder).all[0]


def expected(marked: str) -> Example:
    """Of words; those in capitals are scored."""
    words = marked.split()
    capital = tuple(word.isupper() for word in words)
    return Example(ids(" ".join(word.lower() for word in words)), capital)


def test_the_words_of_every_turn_and_what_ends_it_are_scored_and_nothing_else() -> None:
    assert example(TALK) == expected(
        "<s> <|user|> hi you <|end|> and <|assistant|> HOW ARE YOU <|END|> and"
        " <|user|> fine and you <|end|> and <|assistant|> GOOD BYE <|END|>"
    )
    told = said("hi", "fine", system="be brief")
    assert example(told) == expected(
        "<s> <|system|> be brief <|end|> and <|user|> hi <|end|> and <|assistant|> FINE <|END|>"
    )


def test_a_header_that_the_template_writes_by_itself_is_read_not_scored() -> None:
    silent = CHAT.replace("{% if add_generation_prompt %} <|assistant|>{% endif %}", "")
    assert example(TALK, template=silent) == example(TALK)


def test_words_that_a_template_strips_are_the_same_words() -> None:
    stripping = CHAT.replace("m.content", "m.content | trim")
    assert example(said("hi", "  fine\n"), template=stripping) == example(said("hi", "fine"))


def test_what_ends_a_turn_need_not_be_one_special_token() -> None:
    plain = "{% for m in messages %}{{ m.content }} and good {% endfor %}"
    assert example(said("hi", "fine", "you", "well"), template=plain) == expected(
        "hi and good FINE AND GOOD you and good WELL AND GOOD"
    )
    silent = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert example(said("hi", "fine", "you", "well"), template=silent) == expected(
        "hi FINE you WELL </S>"  # or it would never stop
    )


def test_a_long_conversation_loses_its_beginning_but_for_what_begins_texts() -> None:
    whole = example(TALK)
    assert len(whole) == 22
    rows = [read_row("here", TALK), read_row("here", said("hi", "fine"))]
    cut = answered(rows, Encoder(chatting.tokenizer(), 15))
    assert cut.cut == 1
    # The first turn has lost what it answers, and the one after it has not.
    assert cut.all[0] == expected(
        "<s> how are you <|end|> and <|user|> fine and you <|end|> and <|assistant|> GOOD BYE <|END|>"
    )
    uncut = answered(rows, Encoder(chatting.tokenizer(), 21))  # the last token is predicted, not read
    assert uncut.cut == 0 and uncut.all[0] == whole
    one = answered(rows, Encoder(chatting.tokenizer(), 16)).all[0]
    assert one.ids[:3] == ids("<s> <|assistant|> how") and one.targets == whole.targets
    with pytest.raises(InputError, match="row 1: the last answer has 3 tokens"):
        answered(rows, Encoder(chatting.tokenizer(), 3))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        # What was thought in earlier turns is left out of them.
        (
            CHAT.replace(
                "{{ m.content }}",
                "{% if loop.last and m.role == 'assistant' %}<think> </think> {% endif %}{{ m.content }}",
            ),
            "the chat template is not stable: what it writes of the first 2 of 4 messages",
        ),
        # A turn that is asked for begins otherwise than one that is there.
        (CHAT.replace(" <|assistant|>{% endif", " <|assistant|> <think>{% endif"), "not stable"),
        (CHAT.replace("m.content", "m.content | replace('are', 'and')"), "changes what the assistant says"),
        ("{{ raise_exception('not today') }}", "does not take these messages: not today"),
    ],
)
def test_templates_that_are_not_stable_are_refused(template: str, why: str) -> None:
    with pytest.raises(InputError, match="row 1: ") as caught:
        example(TALK, template=template)
    assert why in caught.value.problem


def test_thoughts_before_the_only_answer_are_read() -> None:
    thinking = CHAT.replace(
        "{{ m.content }}",
        "{% if loop.last and m.role == 'assistant' %}<think> </think> {% endif %}{{ m.content }}",
    )
    assert example(said("hi", "fine"), template=thinking) == expected(
        "<s> <|user|> hi <|end|> and <|assistant|> <think> </think> FINE <|END|>"
    )


def test_without_a_template_or_among_other_rows_they_are_refused() -> None:
    with pytest.raises(InputError, match="rows of messages are read through a chat template"):
        example(TALK, template=None)
    mixed = [read_row("here", TALK), read_row("here", {"prompt": "hi", "answer": "fine"})]
    with pytest.raises(InputError, match="row 1 is a conversation and row 2 is none"):
        answered(mixed, Encoder(chatting.tokenizer(), 64))
    with pytest.raises(InputError, match="row 1: the token 'hi' has the id 7"):
        answered([read_row("here", TALK)], Encoder(chatting.tokenizer(), 64, vocabulary=6))


def test_in_a_chat_the_answer_to_a_prompt_ends_as_a_turn_does() -> None:
    talked = example(said("hi you", "fine"))
    assert example({"prompt": "hi you", "answer": "fine"}, chat=True) == talked
    assert example({"instruction": "hi", "input": "you", "output": "fine"}, chat=True) == talked
    assert example({"prompt": "hi", "choices": ["bye", "fine"], "label": 1}, chat=True) == example(
        said("hi", "fine")
    )


def test_an_instruction_is_laid_out_where_there_is_no_chat() -> None:
    row = {"instruction": "hi", "input": "you", "output": "fine"}
    assert read_row("here", row).prompt == "hi\n\nyou\n\nAnswer:"
    assert example(row) == Example(ids("hi you Answer: fine </s>"), (False, False, False, True, True))
    alone = {"instruction": " hi ", "input": "", "output": "fine"}
    assert read_row("here", alone).prompt == "hi\n\nAnswer:"


def test_what_is_trained_is_what_the_evaluation_asks() -> None:
    """The tokens before the last answer, and the answer's own."""
    tokens = chatting.tokenizer()
    made = example(TALK)
    row: Row = read_row("here", TALK)
    asked = tokens.apply_chat_template(TALK["messages"][:-1], add_generation_prompt=True, tokenize=False)
    (piece,) = Encoder(tokens, 64, templated=True).pieces(asked, [row.answer])
    assert made.ids == (*piece.context, *piece.target, chatting.IDS["<|end|>"])
