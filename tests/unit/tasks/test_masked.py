"""Answers at masks against a plain float64 loop, one text at a time."""

import copy
import random
from typing import Any

import pytest
import torch
from tiny_encoders import ENCODERS, HEADS, LONGEST, PIECES, encoder
from torch import nn

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.scorers.answer import score_answers, score_choices
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.masked import MaskedScorer
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.tokenizer import context_length

FAMILIES = list(ENCODERS)


def quiet(*_: object) -> None:
    """No progress."""


def word(draw: random.Random) -> str:
    pieces = draw.choices(PIECES, k=draw.randrange(3))
    return draw.choice(HEADS) + "".join(piece.removeprefix("##") for piece in pieces)


def questions(seed: int, count: int = 10) -> list[tuple[str, str, list[str]]]:
    """(text before, text after, answers) with and without a marker."""
    draw = random.Random(seed)

    def some(most: int) -> str:
        return " ".join(word(draw) for _ in range(draw.randrange(1, most)))

    afters = ["", ".", " lo mi?"]
    return [(some(4), draw.choice(afters), [some(3) for _ in range(4)]) for _ in range(count)]


def prompts(asked: list[tuple[str, str, list[str]]], marker: str) -> list[str]:
    """Where the answer comes last, half of the prompts have no marker."""
    return [
        before if not after and i % 2 else f"{before} {marker}{after}"
        for i, (before, after, _) in enumerate(asked)
    ]


def scorer(model: nn.Module, tokenizer: Any, limit: int = LONGEST, **options: Any) -> MaskedScorer:
    refuse = options.pop("refuse_long", False)
    return MaskedScorer(model, Cloze(tokenizer, limit, refuse), **options)


def naive(model: nn.Module, ids: list[int], mask: int, target: list[int]) -> tuple[float, bool, int]:
    """Sum of log-probabilities, whether all are the likeliest, and the worst rank, at the masks of a text."""
    places = [i for i, token in enumerate(ids) if token == mask]
    assert len(places) == len(target)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    total, greedy, worst = 0.0, True, 0
    for place, token in zip(places, target, strict=True):
        row = logits[place]
        total += float(row[token] - row.logsumexp(0))
        greedy &= int(row.argmax()) == token
        worst = max(worst, int((row > row[token]).sum()))
    return total, greedy, worst


def spelled(tokenizer: Any, before: str, after: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of the masked text and of the answer."""
    target = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return tokenizer(f"{before} {tokenizer.mask_token * len(target)}{after}")["input_ids"], target


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_one_text_at_a_time_in_float64(family: str) -> None:
    model, tokenizer = encoder(family)
    asked = questions(len(family))
    one = scorer(model, tokenizer, batch_tokens=60)
    found = one.likelihoods(prompts(asked, tokenizer.mask_token), [a for *_, a in asked], True, quiet)
    double = copy.deepcopy(model).double()
    for (before, after, answers), row in zip(asked, found, strict=True):
        for answer, got in zip(answers, row, strict=True):
            ids, target = spelled(tokenizer, before, after, answer)
            total, greedy, worst = naive(double, ids, tokenizer.mask_token_id, target)
            assert got.sum == pytest.approx(total, abs=1e-4)
            assert (got.tokens, got.greedy, got.worst_rank) == (len(target), greedy, worst)
    assert len({len(spelled(tokenizer, "", "", a)[1]) for *_, some in asked for a in some}) > 1
    assert one.work.cut == 0 and one.work.notes == []


def test_a_two_token_answer_by_hand() -> None:
    model, tokenizer = encoder("Bert")
    row = read_row("here", {"prompt": "Ka lo", "answer": "miba"})
    record = score_answers(scorer(model, tokenizer), [row], "log_loss", None, quiet)[0]
    words = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        ids = words(["[CLS]", "ka", "lo", "[MASK]", "[MASK]", "[SEP]"])
        logs = model.double()(torch.tensor([ids])).logits[0].log_softmax(-1)
    total = -float(logs[3, words("mi")] + logs[4, words("##ba")])
    assert record.values["log_loss"] == pytest.approx(total, abs=1e-4)
    assert record.values["log_loss_per_token"] == record.values["log_loss"] / 2


def test_the_spaces_around_an_answer_are_those_of_its_place() -> None:
    """In a byte-level vocabulary a word with a space before it is another token."""
    tokenizer = encoder("Roberta")[1]
    cloze = Cloze(tokenizer, LONGEST)
    words = tokenizer.convert_tokens_to_ids

    def tokens(prompt: str, answer: str) -> tuple[list[str], list[str]]:
        blank = cloze.blank(prompt)
        target = cloze.target(blank, answer)
        read = tokenizer.convert_ids_to_tokens(list(cloze.masked(blank, len(target)).ids))
        return read, tokenizer.convert_ids_to_tokens(list(target))

    assert words("Ġlo") != words("lo")
    last = ["<s>", "ka", "Ġlo", "<mask>", "</s>"]
    for prompt in ("ka lo", "ka lo ", "ka lo <mask>", "ka lo [MASK]"):
        for answer in ("mi", " mi"):
            assert tokens(prompt, answer) == (last, ["Ġmi"]), (prompt, answer)
    assert tokens("<mask> ka", " mi") == (["<s>", "<mask>", "Ġka", "</s>"], ["mi"])
    assert tokens("ka.<mask>.", " mi") == (["<s>", "ka", ".", "<mask>", ".", "</s>"], ["mi"])


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ConvBert"])
def test_results_do_not_depend_on_the_batch_or_on_padding(family: str) -> None:
    model, tokenizer = encoder(family)
    asked = questions(3, 16)
    sums = []
    for size in (1, 61, 100_000):
        found = scorer(model, tokenizer, batch_tokens=size).likelihoods(
            prompts(asked, tokenizer.mask_token), [answers for *_, answers in asked], False, quiet
        )
        sums.append(torch.tensor([one.sum for row in found for one in row]))
    assert all(torch.allclose(sums[0], other, atol=1e-4) for other in sums[1:])


def test_answers_of_one_length_share_a_pass_and_only_masks_have_logits() -> None:
    model, tokenizer = encoder("Bert")
    texts, logits = [], []
    model.register_forward_pre_hook(
        lambda _, __, given: texts.append(given["input_ids"].shape), with_kwargs=True
    )
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: logits.append(out.shape[:2]))
    one = scorer(model, tokenizer, batch_tokens=1)
    one.likelihoods(["ka lo", "ka lo"], [["mi", "nu", "poba"], ["rado", "se", "ti"]], False, quiet)
    assert texts == [(1, 5), (1, 6)]  # one mask, two masks; nothing is tried where all are apart
    assert logits == [(1, 1), (1, 2)]
    assert (one.work.forward_tokens, one.work.naive_tokens) == (11, 4 * 5 + 2 * 6)


def test_the_same_row_as_choices_and_as_answers() -> None:
    model, tokenizer = encoder("Electra")
    fields = {"prompt": "ka <mask> lo.", "choices": ["mi", "nuba", "podofe"], "label": 1}
    choices = score_choices(scorer(model, tokenizer), [read_row("", fields)], "acc", quiet)[0]
    answers = [
        score_answers(
            scorer(model, tokenizer),
            [read_row("", {"prompt": "ka <mask> lo.", "answer": one})],
            "log_loss",
            None,
            quiet,
        )[0].values["log_loss"]
        for one in fields["choices"]
    ]
    assert choices.values["log_loss"] == pytest.approx(answers[1], abs=1e-6)
    assert choices.chosen == min(range(3), key=lambda i: answers[i])


def test_greedy_and_top_k_are_of_all_masks_at_once() -> None:
    model, tokenizer = encoder("DistilBert")
    ids = tokenizer("ka lo [MASK][MASK]")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, 3:5]
    ranks = [logits[0].argsort(descending=True).tolist(), logits[1].argsort(descending=True).tolist()]
    heads = tokenizer.convert_tokens_to_ids(HEADS)
    tails = tokenizer.convert_tokens_to_ids(PIECES)
    for head in heads:
        for tail in tails:
            answer = tokenizer.decode([head, tail]).replace(" ##", "").replace(" ", "")
            row = read_row("", {"prompt": "ka lo", "answer": answer})
            found = score_answers(scorer(model, tokenizer), [row], "greedy", None, quiet)[0].values
            worst = max(ranks[0].index(head), ranks[1].index(tail))
            assert found["greedy"] == found["top1"] == float(worst == 0)
            assert (found["top5"], found["top10"]) == (float(worst < 5), float(worst < 10))


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_positions_of_roberta_begin_behind_its_padding_index(pad: int) -> None:
    """A text of exactly the context's length works, and the model could not read one token more."""
    model, tokenizer = encoder("Roberta", pad_token_id=pad)
    config = model.config.to_dict()
    limit = context_length(config, tokenizer, None)
    assert limit == LONGEST + 2 - pad - 1 - max(0, 1 - pad)  # the tokenizer reads no more than LONGEST
    with pytest.raises(InputError, match="positions"):
        context_length(config, tokenizer, LONGEST + 2 - pad)
    before = " ".join(["ka"] * (limit - 4)) + " lo"  # and <s>, <mask>, </s>
    one = scorer(model, tokenizer, limit)
    found = one.likelihoods([before], [["mi"]], False, quiet)[0][0]
    ids, target = spelled(tokenizer, before, "", "mi")
    assert len(ids) == limit and one.work.cut == 0
    total = naive(copy.deepcopy(model).double(), ids, tokenizer.mask_token_id, target)[0]
    assert found.sum == pytest.approx(total, abs=1e-4)


def ids_read(prompt: str, answer: str, limit: int) -> tuple[list[str], MaskedScorer]:
    model, tokenizer = encoder("Bert")
    seen: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: seen.extend(given["input_ids"].tolist()), with_kwargs=True
    )
    one = scorer(model, tokenizer, limit)
    one.likelihoods([prompt], [[answer]], False, quiet)
    return tokenizer.convert_ids_to_tokens(seen[0]), one


def test_long_prompts_are_cut_from_the_left() -> None:
    read, one = ids_read("ka lo mi nu [MASK] po.", "raba", 8)
    assert read == ["[CLS]", "mi", "nu", "[MASK]", "[MASK]", "po", ".", "[SEP]"]
    assert one.work.cut == 1 and not one.work.notes


def test_what_stands_before_an_answer_may_not_suffice() -> None:
    read, one = ids_read("ka [MASK] lo mi nu po ra se", "ti", 6)
    assert read == ["[CLS]", "[MASK]", "lo", "mi", "nu", "[SEP]"]
    assert one.work.cut == 1 and "cut on the right" in one.work.notes[0]
    with pytest.raises(InputError, match="3 tokens, and with special ones the model reads 4"):
        ids_read("ka", "tibado", 4)
    assert ids_read("ka", "tibado", 5)[0] == ["[CLS]", "[MASK]", "[MASK]", "[MASK]", "[SEP]"]


def test_long_prompts_are_refused_on_request() -> None:
    model, tokenizer = encoder("Bert")
    one = scorer(model, tokenizer, 6, refuse_long=True)
    one.likelihoods(["ka lo mi"], [["nu"]], False, quiet)
    with pytest.raises(InputError, match="answer of 2 tokens has 7, and the context is 6"):
        one.likelihoods(["ka lo mi"], [["nuba"]], False, quiet)


@pytest.mark.parametrize("family", ["Bert", "FNet"])
def test_a_tokenizer_without_a_padding_token(family: str) -> None:
    model, tokenizer = encoder(family)
    asked = questions(5)
    texts, answers = prompts(asked, "[MASK]"), [some for *_, some in asked]
    first = scorer(model, tokenizer).likelihoods(texts, answers, False, quiet)
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    assert scorer(model, tokenizer).likelihoods(texts, answers, False, quiet) == first


def test_unknown_words_are_noted() -> None:
    model, tokenizer = encoder("Bert")
    one = scorer(model, tokenizer)
    one.likelihoods(["ka"], [["lo", "zebra"]], False, quiet)
    assert one.work.notes == ["answers with tokens that the vocabulary does not know: 1"]


def refused(match: str, prompt: str, answer: str, change: Any = lambda model, tokenizer: None) -> None:
    model, tokenizer = encoder("Bert")
    change(model, tokenizer)
    with pytest.raises(InputError, match=match):
        scorer(model, tokenizer).likelihoods([prompt], [[answer]], True, quiet)


@pytest.mark.parametrize("prompt", ["ka [MASK] lo [MASK]", "[MASK] ka <mask>", "<mask><mask>"])
def test_two_markers_are_refused(prompt: str) -> None:
    refused("2 mask markers", prompt, "mi")


def test_an_answer_without_tokens_is_refused() -> None:
    refused("has no tokens", "ka", "\u0000")


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    def forget(_: nn.Module, tokenizer: Any) -> None:
        tokenizer.mask_token = None

    refused("no mask token", "ka", "mi", forget)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    def spoil(model: Any, _: Any) -> None:
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight[0, 0] = value

    refused("not finite", "ka", "mi", spoil)


def test_no_text_is_written() -> None:
    model, tokenizer = encoder("Bert")
    with pytest.raises(InputError, match="does not write"):
        scorer(model, tokenizer).write(["ka"], 3, (), quiet)


def test_rows_with_several_answers_take_the_best() -> None:
    model, tokenizer = encoder("Bert")
    row = read_row("", {"prompt": "ka", "answers": ["mi", "nubado", "po"]})
    assert isinstance(row, Row)
    found = score_answers(scorer(model, tokenizer), [row], "greedy", None, quiet)[0].values
    each: list[Likelihood] = scorer(model, tokenizer).likelihoods(["ka"], [row.answers], True, quiet)[0]
    assert found["log_loss"] == -max(one.sum for one in each)
    assert found["log_loss_per_token"] == min(-one.sum / one.tokens for one in each)
