"""Answers: how likely, whether greedy decoding would write them, and what is written, against plain loops."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import WORDS, save_model

from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.evaluate import prepare
from kanna.tasks.metrics.user_metric import METRICS
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import Record
from kanna.tasks.scorers.answer import Writing, default_new_tokens, needs_writing, score_answers
from kanna.tasks.scorers.scorer import CausalScorer
from kanna.tasks.tokens.encode import Encoder

FIRST = 3  # ids below are special tokens


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("answers") / "model", vocab_size=FIRST + len(WORDS))


@pytest.fixture(scope="module")
def asked(directory: Path) -> tuple[Any, Any]:
    return load(directory, dtype=torch.float32)


@pytest.fixture
def scorer(asked: tuple[Any, Any]) -> CausalScorer:
    model, tokenizer = asked
    return CausalScorer(model, Encoder(tokenizer, 64), batch_tokens=50)


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def text(ids: Sequence[int]) -> str:
    return " ".join(WORDS[i - FIRST] for i in ids)


def ids_of(some: str) -> list[int]:
    return [WORDS.index(word) + FIRST for word in some.split()]


def logs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(vocabulary,) float64 log-probabilities of what follows."""
    double = copy.deepcopy(model).double() if model.dtype != torch.float64 else model
    with torch.no_grad():
        return double(torch.tensor([ids])).logits[0, -1].log_softmax(0)


def greedy(model: Any, ids: Sequence[int], count: int) -> list[int]:
    found = list(ids)
    for _ in range(count):
        found.append(int(logs(model, found).argmax()))
    return found[len(ids) :]


def row(prompt: str, *answers: str) -> Row:
    return Row(f"{prompt} {answers[0]}", prompt, answers[0], answers=answers if len(answers) > 1 else ())


def found(scorer: CausalScorer, rows: Sequence[Row], metric: str = "greedy", **how: Any) -> list[Record]:
    writing = Writing(**{"new_tokens": 6, "stop": ()} | how) if needs_writing(metric) else None
    return score_answers(scorer, rows, metric, writing, lambda *_: None)


def test_log_loss_greedy_and_top_k_equal_a_float64_loop(scorer: CausalScorer) -> None:
    draw, double = random.Random(1), copy.deepcopy(scorer.model).double()
    rows = [
        row(words(draw, 1, 9), *(words(draw, 1, 3) for _ in range(draw.randint(1, 3)))) for _ in range(12)
    ]
    rows += [row(one.prompt, text(greedy(double, ids_of(one.prompt), 2))) for one in rows[:4]]
    for asked, record in zip(rows, found(scorer, rows), strict=True):
        sums, means, worst = [], [], []
        for answer in asked.answers or (asked.answer,):
            before, losses, ranks = ids_of(asked.prompt), [], []
            for token in ids_of(answer):
                row_logs = logs(double, before)
                losses.append(-float(row_logs[token]))
                ranks.append(int((row_logs > row_logs[token]).sum()))
                before.append(token)
            sums.append(sum(losses))
            means.append(sum(losses) / len(losses))
            worst.append(max(ranks))
        values = record.values
        assert values["log_loss"] == pytest.approx(min(sums), abs=1e-4)
        assert values["log_loss_per_token"] == pytest.approx(min(means), abs=1e-4)
        assert [values[f"top{k}"] for k in (1, 5, 10)] == [float(min(worst) < k) for k in (1, 5, 10)]
        assert values["greedy"] == values["top1"]
    assert {record.values["greedy"] for record in found(scorer, rows)} == {0.0, 1.0}


def test_a_two_token_answer_by_hand(scorer: CausalScorer) -> None:
    (record,) = found(scorer, [row("w1 w2", "w3 w4")])
    model = copy.deepcopy(scorer.model).double()
    first = float(logs(model, ids_of("w1 w2"))[ids_of("w3")[0]])
    second = float(logs(model, ids_of("w1 w2 w3"))[ids_of("w4")[0]])
    assert record.values["log_loss"] == pytest.approx(-(first + second), abs=1e-4)
    assert record.values["log_loss_per_token"] == pytest.approx(-(first + second) / 2, abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 3])
def test_greedy_is_what_generation_writes(scorer: CausalScorer, tokens: int) -> None:
    draw = random.Random(2)
    prompts = [words(draw, 1, 9) for _ in range(20)]
    written = scorer.write(prompts, tokens, (), lambda *_: None)
    told = [one if len(one.split()) == tokens else words(draw, tokens, tokens) for one in written]
    told[::3] = [words(draw, tokens, tokens) for _ in told[::3]]
    records = found(scorer, [row(*pair) for pair in zip(prompts, told, strict=True)])
    expected = [float(one == other) for one, other in zip(written, told, strict=True)]
    assert [record.values["greedy"] for record in records] == expected
    assert {0.0, 1.0} == set(expected)


def test_only_new_tokens_are_in_what_is_written(scorer: CausalScorer) -> None:
    draw, double = random.Random(3), copy.deepcopy(scorer.model).double()
    rows = [row(words(draw, 1, 9), "w1") for _ in range(12)]
    kept = 0
    for asked, record in zip(rows, found(scorer, rows, "contains"), strict=True):
        ids = greedy(double, ids_of(asked.prompt), 6)
        if min(ids) >= FIRST:
            assert record.predicted == text(ids)
            assert record.values["contains"] == float("w1" in text(ids))
            kept += 1
    assert kept > 6


def test_what_came_with_the_model_does_not_change_greedy_decoding(scorer: CausalScorer) -> None:
    draw = random.Random(4)
    prompts = [words(draw, 2, 9) for _ in range(8)]
    plain = scorer.write(prompts, 8, (), lambda *_: None)
    settings = scorer.model.generation_config  # type: ignore[union-attr]
    before = settings.to_dict()  # type: ignore[union-attr, operator]
    changes = {
        "do_sample": True,
        "temperature": 2.0,
        "top_k": 3,
        "top_p": 0.5,
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "min_length": 40,
        "suppress_tokens": ids_of(plain[0])[:1],
        "bad_words_ids": [ids_of(plain[1])[:1]],
        "max_length": 5,
    }
    for name, value in changes.items():
        settings.update(**{name: value})  # type: ignore[union-attr, operator]
        try:
            assert scorer.write(prompts, 8, (), lambda *_: None) == plain, name
        finally:
            settings.update(**{name: before.get(name)})  # type: ignore[union-attr, operator]


def test_an_answer_ends_at_a_stop_text(scorer: CausalScorer) -> None:
    prompts = ["w1 w2 w3", "w4", "w9 w9 w8"]
    whole = scorer.write(prompts, 8, (), lambda *_: None)
    stop = whole[0].split()[3]
    short = scorer.write(prompts, 8, (f" {stop}",), lambda *_: None)
    assert short == [one.split(f" {stop}")[0] for one in whole]
    assert short[0] != whole[0]


def test_prompts_of_any_length_are_written_on_alike(scorer: CausalScorer) -> None:
    draw = random.Random(5)
    prompts = [words(draw, 1, 20) for _ in range(15)]
    together = scorer.write(prompts, 5, (), lambda *_: None)
    alone = [scorer.write([prompt], 5, (), lambda *_: None)[0] for prompt in prompts]
    assert together == alone


def test_by_default_twice_the_longest_answer_is_written(scorer: CausalScorer) -> None:
    assert default_new_tokens(scorer, [row("w1", "w2")]) == 8
    assert default_new_tokens(scorer, [row("w1", "w2"), row("w1", "w2", " ".join(["w3"] * 15))]) == 30
    assert default_new_tokens(scorer, [row("w1", " ".join(["w3"] * 500))]) == 256


def test_every_metric_of_answers_has_a_value(scorer: CausalScorer) -> None:
    rows = [row("w1 w2", "w3 7"), row("w5", "w6 8", "w7 9")]
    for metric in METRICS["answer"]:
        assert all(metric in record.values for record in found(scorer, rows, metric))


def test_what_cannot_be_scored_is_refused_before_the_model_is_loaded(directory: Path, tmp_path: Path) -> None:
    task, costs = tmp_path / "task.jsonl", tmp_path / "costs.yaml"
    task.write_text('{"prompt": "w1", "answer": "w2"}\n{"prompt": "w1", "answer": "many"}\n')
    costs.write_text("{w2: {many: 3}}")
    with pytest.raises(InputError, match="row 2: the answer 'many' holds no number"):
        prepare(directory, [task], EvalOptions(metric="numeric"))
    with pytest.raises(InputError, match=r"--legacy-contains says how contains is scored.* greedy"):
        prepare(directory, [task], EvalOptions(legacy_contains=True))
    with pytest.raises(InputError, match="greedy writes nothing"):
        prepare(directory, [task], EvalOptions(costs=costs))
    prepare(directory, [task], EvalOptions(metric="exact", costs=costs))
