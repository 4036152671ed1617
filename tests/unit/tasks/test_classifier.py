"""Classification heads against a plain float64 loop, one prompt at a time."""

import copy
import random
from typing import Any

import pytest
import torch
import transformers
from tiny_encoders import HEADS, LONGEST, encoder
from torch import nn

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.scorers.answer import score_choices
from kanna.tasks.scorers.classifier import ClassifierScorer, labels_of, match

NAMES = {0: "negative", 1: "Neutral", 2: "positive"}
HEAD = "ForSequenceClassification"


def quiet(*_: object) -> None:
    """No progress."""


def classifier(family: str, **changes: Any) -> tuple[nn.Module, Any]:
    return encoder(family, HEAD, **({"id2label": NAMES} | changes))


@torch.random.fork_rng(devices=[])
def decoder(**changes: Any) -> tuple[nn.Module, Any]:
    tokenizer = encoder("Bert")[1]
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.3,
        "id2label": NAMES,
    }
    config = transformers.LlamaConfig(**(settings | changes))
    return transformers.LlamaForSequenceClassification(config).eval(), tokenizer


def scorer(model: Any, tokenizer: Any, limit: int = LONGEST, **options: Any) -> ClassifierScorer:
    return ClassifierScorer(model, tokenizer, labels_of(model.config.to_dict()), limit, **options)


def prompts(seed: int, count: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(HEADS, k=draw.randrange(1, 9))) for _ in range(count)]


def naive(model: nn.Module, tokenizer: Any, prompt: str, columns: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0].double()
    chosen = [logits[column] for column in columns]
    total = sum(float(one.exp()) for one in chosen)
    return [float(one) - float(torch.tensor(total).double().log()) for one in chosen]


def made(kind: str) -> tuple[nn.Module, Any]:
    if kind == "decoder":
        return decoder(pad_token_id=0)
    if kind == "decoder without padding":
        return decoder(pad_token_id=None)
    return classifier(kind)


@pytest.mark.parametrize(
    "kind",
    ["Bert", "Roberta", "DistilBert", "Electra", "FNet", "ConvBert", "decoder", "decoder without padding"],
)
def test_it_equals_one_prompt_at_a_time_in_float64(kind: str) -> None:
    model, tokenizer = made(kind)
    asked = prompts(len(kind))
    draw = random.Random(0)
    some = [draw.sample(range(3), draw.choice([2, 3])) for _ in asked]
    choices = [[NAMES[column].upper() for column in columns] for columns in some]
    found = scorer(model, tokenizer, batch_tokens=40).likelihoods(asked, choices, True, quiet)
    double = copy.deepcopy(model).double()
    for prompt, columns, row in zip(asked, some, found, strict=True):
        expected = naive(double, tokenizer, prompt, columns)
        for got, want in zip(row, expected, strict=True):
            assert got.sum == pytest.approx(want, abs=1e-4)
            assert (got.tokens, got.worst_rank) == (1, sum(other > want for other in expected))
            assert got.greedy == (want == max(expected))


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "decoder"])
def test_results_do_not_depend_on_the_batch(kind: str) -> None:
    model, tokenizer = made(kind)
    asked = prompts(7, 20)
    sums = []
    for size in (1, 37, 100_000):
        one = scorer(model, tokenizer, batch_tokens=size)
        found = one.likelihoods(asked, [list(NAMES.values())] * 20, False, quiet)
        sums.append(torch.tensor([got.sum for row in found for got in row]))
    assert all(torch.allclose(sums[0], other, atol=1e-4) for other in sums[1:])


def test_equal_prompts_are_computed_once() -> None:
    model, tokenizer = classifier("Bert")
    one = scorer(model, tokenizer)
    one.likelihoods(["ka lo"] * 5, [["positive", "negative"]] * 5, False, quiet)
    assert (one.work.forward_tokens, one.work.naive_tokens) == (4, 20)


def test_records_have_no_measures_by_length() -> None:
    model, tokenizer = classifier("Bert")
    row = read_row("", {"prompt": "ka lo", "choices": ["positive", " Negative "], "label": 0})
    record = score_choices(scorer(model, tokenizer), [row], "acc", quiet, by_length=False)[0]
    logs = naive(copy.deepcopy(model).double(), tokenizer, "ka lo", [2, 0])
    assert sorted(record.values) == ["acc", "log_loss", "margin"]
    assert record.values["log_loss"] == pytest.approx(-logs[0], abs=1e-4)
    assert record.chosen == logs.index(max(logs))
    assert record.confidence == pytest.approx(float(torch.tensor(max(logs)).exp()), abs=1e-4)


def test_prompts_are_cut_from_the_left_or_refused() -> None:
    model, tokenizer = classifier("Bert")
    long, short = "ka lo mi nu po ra", "nu po ra"
    choices = [["positive", "negative"]]
    one = scorer(model, tokenizer, 5)
    assert one.likelihoods([long], choices, False, quiet) == scorer(model, tokenizer).likelihoods(
        [short], choices, False, quiet
    )
    assert one.work.cut == 1
    with pytest.raises(InputError, match="8 tokens, and the context is 5"):
        scorer(model, tokenizer, 5, refuse_long=True).likelihoods([long], choices, False, quiet)


def test_choices_are_labels_by_text() -> None:
    labels = ["not spam", "Spam", "LABEL_2"]
    assert match(labels, [["spam ", "NOT SPAM"], ["label_2", "Spam"]]) == [(1, 0), (2, 1)]
    assert match(["LABEL_0", "LABEL_1"], [["LABEL_1", "LABEL_0"]]) == [(1, 0)]


def test_labels_without_names_are_taken_by_place() -> None:
    unnamed = ["LABEL_0", "LABEL_1"]
    assert match(unnamed, [["ham", "spam"]] * 3) == [(0, 1)] * 3
    for other in (["spam", "ham"], ["ham", "spam", "eggs"], ["ham", "Spam"], ["ham", "LABEL_1"]):
        with pytest.raises(InputError, match=r"LABEL_0, LABEL_1.*row 2 has .*choices .*ham") as caught:
            match(unnamed, [["ham", "spam"], other])
        assert "id2label" in str(caught.value)
    with pytest.raises(InputError, match="no names"):
        match(unnamed, [["a", "b", "c"]] * 2)
    with pytest.raises(InputError) as caught:
        match(["LABEL_0", "LABEL_1", "LABEL_2"], [["blue", "green"]] * 2)
    said = "3 labels have no names (LABEL_0, LABEL_1, LABEL_2), and row 1 has 2 choices (blue, green)"
    assert caught.value.problem == f"the model's {said}"


@pytest.mark.parametrize(
    ("labels", "choices", "said"),
    [
        (["yes", "no"], [["yes", "no"], ["yes", "maybe"]], "row 2 has the choice 'maybe'.*yes, no"),
        (["yes", "no", "No"], [["yes", "no"]], "upper and lower case only: yes, no, No"),
        (["yes", "no"], [["yes", "Yes "]], "row 1 has two choices for one label"),
    ],
)
def test_choices_that_are_no_labels(labels: list[str], choices: list[list[str]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        match(labels, choices)


def test_labels_come_in_the_order_of_the_outputs() -> None:
    assert labels_of({"id2label": {"10": "k", "2": "b", "0": "a"}}) == ("a", "b", "k")
    assert labels_of({}) == ("LABEL_0", "LABEL_1")
    assert labels_of(transformers.BertConfig(num_labels=3).to_diff_dict()) == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    )
    assert labels_of(transformers.BertConfig().to_diff_dict()) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "regression", "id2label": {"0": "score"}},
        {"id2label": {"0": "LABEL_0"}},
        {"problem_type": "multi_label_classification", "id2label": {"0": "a", "1": "b"}},
        {"num_labels": 1},
    ],
)
def test_other_heads_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="does not choose one of several labels"):
        labels_of(config)


def test_broken_labels_are_refused() -> None:
    with pytest.raises(InputError, match="no numbers"):
        labels_of({"id2label": {"a": "x", "b": "y"}})


def test_logits_that_are_not_finite_are_refused() -> None:
    model, tokenizer = classifier("DistilBert")
    with torch.no_grad():
        model.get_submodule("classifier").weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        scorer(model, tokenizer).likelihoods(["ka"], [["positive", "neutral"]], False, quiet)


def test_a_tokenizer_without_a_padding_token() -> None:
    model, tokenizer = classifier("Bert")
    asked, choices = prompts(2), [["positive", "negative"]] * 12
    first = scorer(model, tokenizer).likelihoods(asked, choices, False, quiet)
    tokenizer.pad_token = None
    assert scorer(model, tokenizer).likelihoods(asked, choices, False, quiet) == first


def test_no_text_is_written() -> None:
    model, tokenizer = classifier("Bert")
    with pytest.raises(InputError, match="does not write"):
        scorer(model, tokenizer).write(["ka"], 3, (), quiet)


def test_rows_keep_their_own_choices() -> None:
    model, tokenizer = classifier("Bert")
    rows = [
        Row("", "ka", "", "", ("positive", "negative"), 0),
        Row("", "ka", "", "", ("neutral", "positive", "negative"), 2),
    ]
    found = score_choices(scorer(model, tokenizer), rows, "acc", quiet, by_length=False)
    pair = naive(copy.deepcopy(model).double(), tokenizer, "ka", [2, 0])
    three = naive(copy.deepcopy(model).double(), tokenizer, "ka", [1, 2, 0])
    assert found[0].values["log_loss"] == pytest.approx(-pair[0], abs=1e-4)
    assert found[1].values["log_loss"] == pytest.approx(-three[2], abs=1e-4)
