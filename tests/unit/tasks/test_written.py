"""What is written, and read before it, against greedy decoding by hand: one row at a time, no padding."""

from typing import Any

import encoder_decoders
import family_configs
import pytest
import tiny
import torch
from disturbed import disturbed
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.scorers.perplexity import score_text
from kanna.tasks.scorers.scorer import CausalScorer
from kanna.tasks.scorers.seq2seq import Seq2SeqScorer
from kanna.tasks.scorers.written import plan_writing, write
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.special import cut_left
from kanna.tasks.tokens.tokenizer import context_length

LETTERS = "".join(tiny.LETTERS)
PROMPTS = [LETTERS[start : start + size] for start, size in enumerate((3, 30, 9, 9, 17, 22, 4, 26, 11, 3))]


def quiet(*_: Any) -> None:
    """No progress."""


def by_hand(model: nn.Module, ids: list[int], new: int) -> list[int]:
    written: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        if written[-1] == 2:
            break
    return written


def ending(before: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that puts `</s>` behind every text."""
    made = tiny.tokenizer()
    known = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    made._tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A </s>".strip(), special_tokens=known
    )
    assert made("ab")["input_ids"][-1] == 2
    return made


@pytest.mark.parametrize(
    ("name", "words"),
    [("llama", None), ("rwkv", "by itself"), ("recurrent_gemma", "equal length"), ("phi3", None)],
)
def test_texts_are_those_of_greedy_decoding_by_hand(name: str, words: str | None) -> None:
    model: Any = family_configs.model("llama") if name == "llama" else disturbed(name)
    tokenizer = tiny.tokenizer()
    scorer = CausalScorer(model, Encoder(tokenizer, 60))
    texts = scorer.write(PROMPTS, 7, (), quiet)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = by_hand(model, tokenizer(prompt)["input_ids"], 7)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(scorer.work.layouts) == bool(words) and all(str(words) in note for note in scorer.work.layouts)


def test_prompts_of_many_lengths_go_together_where_padding_is_harmless() -> None:
    tokenizer = tiny.tokenizer()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert len(plan_writing(family_configs.model("llama"), tokenizer, ids, 7).batches) == 1
    apart = plan_writing(disturbed("recurrent_gemma"), tokenizer, ids, 7)
    assert all(len(set(map(len, batch))) == 1 for batch in apart.batches)
    assert sorted(prompt for batch in apart.batches for prompt in batch) == sorted(map(tuple, ids))


def test_texts_that_grow_beyond_a_bound_do_so_together() -> None:
    ids = [tuple(range(3, 3 + size)) for size in (10, 12, 21, 21, 22, 30, 31)]
    found = plan_writing(disturbed("phi3"), tiny.tokenizer(), ids, 8).batches
    assert [[len(prompt) for prompt in batch] for batch in found] == [[10, 12], [21], [22], [30, 31]]


@pytest.mark.parametrize("before", ["", "<s>"])
def test_nothing_stands_between_a_prompt_and_what_follows(before: str) -> None:
    encoder = Encoder(ending(before), 60)
    start = [1] if before else []
    assert encoder.start_of("abc") == [*start, 3, 4, 5]
    (piece,) = encoder.pieces("ab", ["cd"])
    tokens = tiny.tokenizer()("ab cd")["input_ids"]
    assert (piece.context + piece.target) == (*start, *tokens) and 2 not in piece.target
    scorer = CausalScorer(family_configs.model("llama"), encoder)
    assert (
        "</s>" in scorer.work.notes[0]
        and not CausalScorer(scorer.model, Encoder(tiny.tokenizer(), 9)).work.notes
    )


def test_a_text_is_scored_without_the_token_behind_it() -> None:
    model = family_configs.model("llama")
    rows = [Row("abcdef")]
    _, plain = score_text(model, tiny.tokenizer(), rows, 20, None, None, quiet)
    _, found = score_text(model, ending(), rows, 20, None, None, quiet)
    assert found.log_likelihood == plain.log_likelihood and "</s>" in found.notes[0]


def test_long_prompts_keep_the_token_that_texts_begin_with() -> None:
    encoder = Encoder(ending("<s>"), 6)
    (piece,) = encoder.pieces("abcdefgh", [" ij"])
    assert len(piece.inputs) == 6 and piece.context[0] == 1 and piece.cut > 0
    assert encoder.shortened(encoder.start_of("abcdefgh"), 4) == [1, 8, 9, 10]
    assert Encoder(tiny.tokenizer(), 6).shortened([3, 4, 5, 6], 2) == [5, 6]
    assert Encoder(tiny.tokenizer(), 6, chat=True).shortened([1, 4, 5, 6], 2) == [1, 6]
    assert cut_left([1, 1, 4, 5], 2, 2) == [4, 5]


def test_a_token_that_the_model_lacks_is_told_with_its_row() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<new>"])
    scorer = CausalScorer(family_configs.model("llama"), Encoder(tokenizer, 60, vocabulary=61))
    for ask in (
        lambda: scorer.likelihoods(["ab", "a<new>b"], [["c"], ["c"]], False, quiet),
        lambda: scorer.likelihoods(["ab", "ab"], [["c"], ["<new>"]], False, quiet),
        lambda: scorer.write(["ab", "a<new>b"], 4, (), quiet),
        lambda: score_text(scorer.model, tokenizer, [Row("ab"), Row("a<new>")], 9, None, None, quiet),
    ):
        with pytest.raises(InputError, match="row 2: the token '<new>' has the id 61"):
            ask()


def test_padding_is_a_token_that_the_model_has() -> None:
    tokenizer = tiny.tokenizer()
    plain = write(family_configs.model("llama"), tokenizer, [[3, 4], [5, 6, 7]], 5)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 61
    assert write(family_configs.model("llama"), tokenizer, [[3, 4], [5, 6, 7]], 5) == plain


def test_logits_that_are_not_finite_are_not_written() -> None:
    model = family_configs.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")  # type: ignore[operator]
    with pytest.raises(InputError, match="not finite"):
        write(model, tiny.tokenizer(), [[3, 4], [5, 6, 7]], 5)
    assert len(write(model, tiny.tokenizer(), [[3, 4]], 1)) == 1


@pytest.mark.parametrize(
    ("config", "wanted", "length"),
    [
        ({"max_seq_len": 65536}, 4096, 4096),
        ({"max_seq_len": 128}, None, 128),
        ({"text_config": {"max_position_embeddings": 64}}, None, 64),
        ({"max_position_embeddings": 32}, None, 32),
        ({}, None, 2048),
        ({}, 4096, 4096),  # nothing says that it would be too long
    ],
)
def test_the_context_of_a_configuration(config: dict[str, Any], wanted: int | None, length: int) -> None:
    assert context_length(config, None, wanted) == length


@pytest.mark.parametrize("config", [{"max_seq_len": 128}, {"n_positions": 128, "n_ctx": 4096}])
def test_a_context_beyond_the_positions_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="128 positions"):
        context_length(config, None, 129)


@pytest.mark.parametrize(
    ("text", "stop", "blank", "written"),
    [
        ("\nblue\nred", ("\n",), False, "blue"),
        ("\n \n blue\nred", ("\n",), False, " blue"),
        ("\nblue\nred", ("\n",), True, ""),
        ("\n\n", ("\n",), False, ""),
        ("Q: no", ("Q:",), False, ""),
        (" blue", ("\n",), False, " blue"),
        ("blue. Q: no\n", ("\n", "Q:"), False, "blue. "),
    ],
)
def test_an_answer_ends_behind_some_text(
    monkeypatch: pytest.MonkeyPatch, text: str, stop: tuple[str, ...], blank: bool, written: str
) -> None:
    tokenizer = tiny.tokenizer()
    model = family_configs.model("llama")
    monkeypatch.setattr(tokenizer, "decode", lambda *_, **__: text)
    assert write(model, tokenizer, [[3]], 1, stop=stop, blank=blank)[0].text == written


def test_an_encoder_decoder_refuses_tokens_that_it_lacks_by_row() -> None:
    tokenizer = encoder_decoders.tokenizer(begins=False)
    model = encoder_decoders.model("t5")
    tokenizer.add_tokens(["<new>"])
    scorer = Seq2SeqScorer(model, tokenizer, 60)
    missing = tokenizer.convert_tokens_to_ids("<new>")
    known = model.get_input_embeddings().num_embeddings
    if missing < known:
        tokenizer.add_tokens([f"<{i}>" for i in range(known - missing)])
    last = tokenizer.convert_ids_to_tokens(max(known, missing))
    with pytest.raises(InputError, match="row 2: the token"):
        scorer.likelihoods(["a b", f"a {last}"], [["c"], ["c"]], False, quiet)
    with pytest.raises(InputError, match="row 1: the token"):
        scorer.likelihoods(["a b"], [[last]], False, quiet)
