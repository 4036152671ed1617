"""Choices: which is likeliest, and what groups, confidences and costs make of it, against plain loops."""

import copy
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import WORDS, save_model

from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.metrics.summaries import (
    answer_in_prompt,
    breakdown,
    calibration,
    confusion_cost,
    consistency,
    constant_answer,
    load_costs,
    summarise,
)
from kanna.tasks.records import Record, TaskScore
from kanna.tasks.scorers.answer import score_choices
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.scorer import CausalScorer, Work
from kanna.tasks.tokens.encode import Encoder

FIRST = 3  # ids below are special tokens


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> CausalScorer:
    model, tokenizer = load(save_model(tmp_path_factory.mktemp("choices") / "model"), dtype=torch.float32)
    return CausalScorer(model, Encoder(tokenizer, 64), batch_tokens=50)


def row(prompt: str, choices: Sequence[str], label: int, **more: Any) -> Row:
    return read_row("here", {"prompt": prompt, "choices": list(choices), "label": label} | more)


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def rows(seed: int, count: int = 12) -> list[Row]:
    draw, found = random.Random(seed), []
    for _ in range(count):
        choices = list(dict.fromkeys(words(draw, 1, 4) for _ in range(draw.randint(2, 5))))
        found.append(row(words(draw, 1, 12), choices, draw.randrange(len(choices))))
    return found


def chosen(scorer: Any, asked: Sequence[Row], metric: str = "acc", **how: Any) -> list[Record]:
    return score_choices(scorer, asked, metric, lambda *_: None, **how)


def log_loss(model: Any, prompt: str, choice: str) -> list[float]:
    ids = [WORDS.index(word) + FIRST for word in prompt.split()]
    losses = []
    for word in choice.split():
        with torch.no_grad():
            row_logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        ids.append(WORDS.index(word) + FIRST)
        losses.append(-float(row_logs[ids[-1]]))
    return losses


def test_scores_equal_a_float64_loop(scorer: CausalScorer) -> None:
    asked, double = rows(1, 20), copy.deepcopy(scorer.model).double()
    by_sum, by_length = chosen(scorer, asked), chosen(scorer, asked, "acc_norm")
    for one, plain, normed in zip(asked, by_sum, by_length, strict=True):
        losses = [log_loss(double, one.prompt, choice) for choice in one.choices]
        sums = np.array([-sum(some) for some in losses])
        best = int(sums.argmax())
        norm = int((sums / [len(choice) for choice in one.choices]).argmax())
        assert (plain.chosen, normed.chosen) == (best, norm)
        assert (plain.predicted, normed.predicted) == (one.choices[best], one.choices[norm])
        assert (plain.right, normed.right) == (best == one.label, norm == one.label)
        assert (plain.values["acc"], plain.values["acc_norm"]) == (best == one.label, norm == one.label)
        assert one.label is not None
        gold = losses[one.label]
        assert plain.values["log_loss"] == pytest.approx(sum(gold), abs=1e-4)
        assert plain.values["log_loss_per_token"] == pytest.approx(sum(gold) / len(gold), abs=1e-4)
        shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
        assert plain.confidence == pytest.approx(shares[best], abs=1e-4)
        assert normed.confidence == pytest.approx(shares[norm], abs=1e-4)
        assert plain.values["margin"] == pytest.approx(np.diff(np.sort(sums))[-1], abs=2e-4)
    assert any(one.chosen != other.chosen for one, other in zip(by_sum, by_length, strict=True))


class Known:
    """Has the log-likelihoods it is told."""

    work = Work()

    def __init__(self, *sums: Sequence[float]) -> None:
        self._sums = sums

    def likelihoods(self, *_: Any) -> list[list[Likelihood]]:
        return [[Likelihood(one, 2, False) for one in some] for some in self._sums]

    def write(self, *_: Any) -> list[str]:
        raise AssertionError

    def length(self, text: str) -> int:
        return len(text)


def test_of_equals_the_first_wins() -> None:
    asked = [row("p", ["aa", "bb", "cc"], 1)]
    assert chosen(Known([-2.0, -1.0, -1.0]), asked)[0].chosen == 1
    assert chosen(Known([-1.0, -1.0, -1.0]), asked)[0].chosen == 0
    assert chosen(Known([-1.0, -1.0, -1.0]), asked, "acc_norm")[0].chosen == 0
    assert chosen(Known([-1.0, -1.0, -1.0]), asked)[0].values["margin"] == 0


def test_length_is_in_characters_without_spaces_around() -> None:
    for choices in (["ab", "abcd"], [" ab", " abcd"], ["ab", " abcd "]):
        (record,) = chosen(Known([-3.0, -5.0]), [row("p", choices, 1)], "acc_norm")
        assert record.chosen == 1  # -1.5 and -1.25 a character
        assert record.values["acc"] == 0.0
    (record,) = chosen(Known([-2.0, -2.9]), [row("p", ["東京", "abc"], 0)], "acc_norm")
    assert record.chosen == 1  # a character of Japanese is one, not three bytes


def test_spaces_before_choices_change_nothing(scorer: CausalScorer) -> None:
    asked = rows(2)
    spaced = [row(one.prompt, [f" {choice}" for choice in one.choices], one.label or 0) for one in asked]
    plain = [replaced(one) for one in asked]
    for metric in ("acc", "acc_norm"):
        pairs = zip(chosen(scorer, plain, metric), chosen(scorer, spaced, metric), strict=True)
        assert all(one.chosen == other.chosen and one.values == other.values for one, other in pairs)


def replaced(one: Row) -> Row:
    return row(one.prompt, one.choices, one.label or 0)


def test_without_lengths_there_is_no_score_by_length() -> None:
    (record,) = chosen(Known([-1.0, -2.0]), [row("p", ["a", "b"], 0)], by_length=False)
    assert set(record.values) == {"acc", "log_loss", "margin"}


def test_a_paraphrased_fact_is_right_where_all_its_rows_are() -> None:
    groups = ["one", "one", "two", "two", "two", "three", "", "four", "four"]
    right = [1, 1, 1, 0, 1, 1, 0, 0, 0]
    found = [
        Record(i, "", "", "", bool(yes), {"acc": float(yes)}, group=group)
        for i, (group, yes) in enumerate(zip(groups, right, strict=True))
    ]
    assert consistency(found) == pytest.approx(1 / 3)  # of one, two and four; three has a single row
    assert consistency([one for one in found if one.group in ("three", "")]) is None
    asked = [row("p", ["a", "b"], 0) for _ in found]
    assert summarise(found, asked, "acc")["consistency"] == pytest.approx(1 / 3)
    assert "consistency" not in summarise(found[5:7], asked[5:7], "acc")


def naive_calibration_error(sure: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            total += inside.sum() / len(sure) * abs(right[inside].mean() - sure[inside].mean())
    return total


def test_calibration_error_equals_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    for sharpness in (0.3, 1, 4):
        sure = 0.25 + 0.75 * draw.random(500) ** sharpness
        right = draw.random(500) < sure**2
        found = [
            Record(i, "", "", "", bool(yes), {}, confidence=float(one))
            for i, (one, yes) in enumerate(zip(sure, right, strict=True))
        ]
        expected = naive_calibration_error(sure, right.astype(float))
        assert calibration(found)["calibration_error"] == pytest.approx(expected) and expected > 0.05
    certain = [Record(0, "", "", "", True, {}, confidence=1.0)]
    assert calibration(certain)["calibration_error"] == 0


def test_a_wrong_answer_costs_what_its_row_says() -> None:
    asked = [row("p", ["a", "b"], 0, cost=cost) for cost in (1, 5, 10, 2.5)]
    found = chosen(Known([-2, -1], [-1, -2], [-2, -1], [-2, -1]), asked)
    assert summarise(found, asked, "acc")["expected_cost"] == pytest.approx((1 + 0 + 10 + 2.5) / 4)
    same = [row("p", ["a", "b"], 0) for _ in asked]
    assert "expected_cost" not in summarise(chosen(Known(*[[-1, -2]] * 4), same), same, "acc")


def test_costs_by_what_was_taken_for_what(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text("true: {false: 20, true: 0.5}\n'false': {true: 3}\n")
    asked = [row("p", [" true", " false", " no"], label, cost=7) for label in (0, 0, 1, 1, 2, 2)]
    found = chosen(Known(*([-1.0 if i == j else -2.0 for j in range(3)] for i in (0, 1, 0, 1, 0, 2))), asked)
    assert [record.chosen for record in found] == [0, 1, 0, 1, 0, 2]
    # A pair that is not named costs what its row says; a right answer nothing, unless the file says so.
    assert confusion_cost(found, asked, load_costs(path, asked)) == pytest.approx(
        (0.5 + 20 + 3 + 0 + 7 + 0) / 6
    )
    assert summarise(found, asked, "acc", path)["expected_cost"] == pytest.approx(30.5 / 6)


def test_costs_of_written_answers(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text("{ham: {spam: 20}, Ham!: {spam: 4}, spam: {ham: 2}}")
    asked = [
        read_row("here", {"prompt": "p", "answers": ["ham", "Ham!"]}),
        read_row("here", {"prompt": "p", "answer": "ham"}),
        read_row("here", {"prompt": "p", "answer": "spam"}),
        read_row("here", {"prompt": "p", "answer": "spam", "cost": 9}),
    ]
    written = ["spam", "HAM", "ham", "eggs"]
    found = [
        Record(i, "p", "", text, i == 1, {"exact_normalized": float(i == 1)})
        for i, text in enumerate(written)
    ]
    found[3] = Record(3, "p", "", "eggs", False, {"exact_normalized": 0.0}, cost=9.0)
    costs = summarise(found, asked, "exact_normalized", path)["expected_cost"]
    assert costs == pytest.approx((4 + 0 + 2 + 9) / 4)
    graded = [Record(i, "p", "", text, None, {"f1": 0.5}) for i, text in enumerate(written)]
    assert summarise(graded, asked, "f1", path)["expected_cost"] == pytest.approx((4 + 1 + 2 + 1) / 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{a: {c: 1}}", "no row of the task has the answer 'c'"),
        ("{a: {b: -1}}", "'-1' of .* is no number of at least 0"),
        ("{a: {b: .nan}}", "no number"),
        ("{a: {b: nan}}", "no number"),
        ("{a: {b: inf}}", "no number"),
        ("{a: {b: true}}", "no number"),
        ("{a: {b: [1]}}", "no number"),
        ("{a: {b: }}", "no number"),
        ("[1]", "must map answers to costs"),
        ("{a: 1}", "must map answers to costs"),
        ("{a: ", "cannot be read"),
    ],
)
def test_cost_files_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_costs(path, [row("p", ["a", "b"], 0)])
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        load_costs(tmp_path / "none.yaml", [])


def test_constant_answers_and_answers_in_prompts() -> None:
    asked = [row(f"is a true {i}", ["true", "false"], int(i > 6)) for i in range(10)]
    assert constant_answer(asked) == (0.7, "true")
    assert answer_in_prompt(asked) == 0.7
    draw = random.Random(4)
    different = [row("p", [f"{i} a", f"{i} b", f"{i} c"], label) for i, label in enumerate([2, 2, 2, 0, 1])]
    assert constant_answer(different) == (0.6, "choice 2")
    assert math.isclose(constant_answer([row(words(draw, 1, 2), ["x", "y"], 0)])[0], 1.0)


def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    rows = [read_row("a", {"prompt": "p", "choices": ["x", "y"], "label": 0})]
    path = tmp_path / "costs.yaml"
    for text, line in (("x: {y: 1}\nx: {y: 2}\n", 2), ("a: &a {y: 1}\nx:\n  y: 1\n  y: 9\n", 4)):
        path.write_text(text)
        with pytest.raises(InputError, match=f"line {line}: the key '[xy]' stands twice"):
            load_costs(path, rows)
    path.write_text("x: &some {y: 3}\ny: *some\n")
    assert load_costs(path, rows) == {("x", "y"): 3.0, ("y", "y"): 3.0}


def test_parts_by_a_key_whatever_its_values(tmp_path: Path) -> None:
    values = ["é", "e\u0301", 2, 10, ["b"], ["b"], float("nan"), float("nan")]
    rows = [read_row("a", {"prompt": "p", "answer": "x", "topic": value}) for value in values]
    records = [Record(i, "p", "x", "", None, {"exact": float(i)}) for i in range(len(rows))]
    score = TaskScore.of("t", "answer", "exact", True, {"exact": 3.5}, {}, records)
    found = breakdown(score, rows, "topic")
    assert {key: (part["rows"], part["value"]) for key, part in found.items()} == {
        "2": (1, 2.0),
        "10": (1, 3.0),
        "é": (2, 0.5),
        "['b']": (2, 4.5),
        "nan": (2, 6.5),
    }
    assert list(found).index("2") < list(found).index("10")
