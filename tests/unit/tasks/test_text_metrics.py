"""Scores of written answers against sacrebleu, rouge-score and plain references."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.metrics.text_metrics import (
    NAMES,
    check_answers,
    check_metric,
    corpus_bleu,
    legacy_contains,
    score,
    segmentation_note,
    tokens,
)
from kanna.tasks.scorers.answer import Writing, score_answers
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.scorer import Work

TEXT = "the cat sat on a mat while two dogs ran past it and did not care"
WORDS = TEXT.split()
JAPANESE, CHINESE = "私は猫が好きです。犬も好きです。", "我很喜欢猫和狗。它们都很可爱。"


def sentence(draw: random.Random, most: int = 14) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, most)))


def row(answer: str, prompt: str = "p", *others: str) -> Row:
    answers = (answer, *others) if others else ()
    return Row(f"{prompt} {answer}", prompt, answer, answers=answers)


@pytest.mark.parametrize(
    ("metric", "written", "answer", "expected"),
    [
        ("exact", " Paris\n", "Paris", 1),
        ("exact", "paris", "Paris", 0),
        ("exact", "Paris.", "Paris", 0),
        ("exact_normalized", "The  paris!", "Paris", 1),
        ("exact_normalized", "It's a cat", "it s cat", 1),
        ("exact_normalized", "theatre", "atre", 0),
        ("exact_normalized", "北京。", "北京", 1),
        ("exact_normalized", "cafe\u0301", "café", 1),
        ("exact_normalized", "a", "A", 1),
        ("exact_normalized", "the", "A", 0),
        ("exact_normalized", "+", "-", 0),
        ("contains", "I think it is paris, yes", "Paris", 1),
        ("contains", "Par is", "Paris", 0),
        ("contains", "東京は大きい", "東京", 1),
        ("regex:answer is (\\w+)", "so the answer is Paris.", "Paris", 1),
        ("regex:answer is (\\w+)", "so the answer is paris.", "Paris", 0),
        ("regex:[A-D]", "I say B, not C", "B", 1),
        ("regex:x(y)?", "x", "y", 0),
        ("regex:(no)(yes)?", "no", "no", 1),
        ("regex:Z", "nothing", "Z", 0),
    ],
)
def test_texts_that_match_or_do_not(metric: str, written: str, answer: str, expected: float) -> None:
    assert score(metric, written, [answer]) == expected


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("#### 42", "42"),
        ("She pays 3 * 4 = $1,234.50.", "1234.5"),
        ("costs $ 1,000,000", "1000000"),
        ("It is 12,345,678.9 in all", "12345678.9"),
        ("x = 3.", "3"),
        ("the answer is 7, I think", "7"),
        ("that is 50%", "50"),
        (".5 of it", "0.5"),
        ("The answer is -3", "-3"),
        ("it loses -$5.", "-5"),
        ("(-4)", "-4"),
        ("= -4", "-4"),
        ("so: \u22127", "-7"),
        ("10 - 3", "3"),
        ("10-3", "3"),
        ("(2 + 1) - 3", "3"),
        ("50% - 3", "3"),
        ("GPT-3", "3"),
        ("1.5e3 metres", "1500"),
        ("3e-5", "0.00003"),
        ("pages 1, 2, 3", "3"),
        ("numbers 1,2345", "1.2345"),
        ("007", "7"),
        ("-0", "0"),
    ],
)
def test_the_last_number_counts(written: str, number: str) -> None:
    assert score("numeric", written, [number]) == 1
    assert score("numeric", written, [f"Reasoning of 99 steps.\n#### {number}"]) == 1
    assert score("numeric", written, [str(float(number) + 1)]) == 0


@given(st.integers(-(10**9), 10**9), st.integers(0, 99))
def test_numbers_are_read_however_they_are_written(whole: int, cents: int) -> None:
    value = f"{whole}.{cents:02d}"
    for shown in (f"{whole:,}.{cents:02d}", value, f"about {value}.", f"#### {value}"):
        assert score("numeric", shown, [value]) == 1
    assert score("numeric", f"{whole + 1}.{cents:02d}", [value]) == 0


@pytest.mark.parametrize("written", ["", "none", "-", "minus three"])
def test_a_text_without_a_number_is_wrong(written: str) -> None:
    assert score("numeric", written, ["0"]) == 0


def test_numbers_are_equal_or_not_whatever_their_size() -> None:
    assert score("numeric", "2e-7", ["1e-7"]) == 0
    assert score("numeric", "100000001", ["100000000"]) == 0
    assert score("numeric", "0.30000000000000004", ["0.3"]) == 1


def test_answers_without_a_number_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="'many' holds no number"):
        score("numeric", "5", ["many"])
    assert score("numeric", "5", ["many", "5"]) == 1
    check_answers("numeric", [row("1"), row("some", "p", "2")])
    with pytest.raises(InputError, match="row 2: the answer 'many' holds no number"):
        check_answers("numeric", [row("1"), row("many")])


def naive_f1(mine: Sequence[str], theirs: Sequence[str]) -> float:
    left, shared = list(theirs), 0
    for word in mine:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(mine), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    draw = random.Random(1)
    seen = Counter[bool]()
    for _ in range(200):
        one, other = sentence(draw), sentence(draw)
        words = [[word for word in text.split() if word not in ("a", "the")] for text in (one, other)]
        if not all(words):
            continue
        expected = naive_f1(*words)
        assert score("f1", one.title() + "!", [other]) == pytest.approx(expected)
        seen[0 < expected < 1] += 1
    assert seen[True] > 50
    assert score("f1", "猫が好き", ["猫と犬が好き"]) == pytest.approx(
        naive_f1(list("猫が好き"), list("猫と犬が好き"))
    )


def test_bleu_is_sacrebleus() -> None:
    draw = random.Random(2)
    texts = [(sentence(draw), [sentence(draw) for _ in range(draw.randrange(1, 4))]) for _ in range(60)]
    texts += [(one[0], one) for one in (["the cat sat on a mat"], ["it did not", "the dogs ran"])]
    reference = sacrebleu.metrics.BLEU(effective_order=True)
    for written, answers in texts:
        expected = max(reference.sentence_score(written, [one]).score for one in answers) / 100
        assert score("bleu", written, answers) == pytest.approx(expected)
    for together in (texts, [(written, answers[:1]) for written, answers in texts]):
        most = max(len(answers) for _, answers in together)
        references = [[(*answers, *[None] * most)[i] for _, answers in together] for i in range(most)]
        expected = sacrebleu.corpus_bleu([one for one, _ in together], references).score / 100
        found = corpus_bleu([one for one, _ in together], [answers for _, answers in together])
        assert found == pytest.approx(expected) and 0 < found < 1


@pytest.mark.parametrize(("text", "tokenizer"), [(JAPANESE, "ja-mecab"), (CHINESE, "zh")])
def test_bleu_of_chinese_and_japanese_has_its_tokenizer(text: str, tokenizer: str) -> None:
    written = text[2:] + "42"
    expected = sacrebleu.sentence_bleu(written, [text], tokenize=tokenizer).score / 100
    assert score("bleu", written, [text]) == pytest.approx(expected)
    assert expected != pytest.approx(sacrebleu.sentence_bleu(written, [text]).score / 100, abs=0.01)
    assert corpus_bleu([written], [[text]]) == pytest.approx(
        sacrebleu.corpus_bleu([written], [[text]], tokenize=tokenizer).score / 100
    )


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score(kind: str) -> None:
    draw, scorer = random.Random(3), RougeScorer([kind])
    found = []
    for _ in range(60):
        written, answers = sentence(draw), [sentence(draw) + " x_1, Y-2!" for _ in range(2)]
        expected = max(scorer.score(answer, written)[kind].fmeasure for answer in answers)
        found.append(score(kind, written, answers))
        assert found[-1] == pytest.approx(expected)
    assert len({round(one, 3) for one in found}) > 5


def test_rouge_of_chinese_and_japanese_is_by_character() -> None:
    for text in (JAPANESE, CHINESE):
        written = text[3:8] + text[:4]
        spaced = [" ".join(f"c{ord(sign)}" for sign in some if sign != "。") for some in (text, written)]
        for kind in ("rouge1", "rouge2", "rougeL"):
            assert score(kind, written, [text]) == pytest.approx(
                RougeScorer([kind]).score(*spaced)[kind].fmeasure
            )


def test_words() -> None:
    assert tokens("Don't stop_me 3.5 Ünï") == ["don", "t", "stop", "me", "3", "5", "ünï"]
    assert tokens("GPT-4は東京タワーへ・行く。") == ["gpt", "4", *"は東京タワーへ行く"]
    assert tokens("人々 3個 한국어 text") == ["人", "々", "3", "個", "한국어", "text"]
    assert tokens("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert tokens("e\u0301t\u00e9") == ["\u00e9t\u00e9"]
    assert tokens("...") == []


def test_how_words_were_cut_is_said() -> None:
    assert (
        segmentation_note([row("two cats")]) == "words are runs of letters and digits (BLEU: sacrebleu's 13a)"
    )
    assert "Japanese is cut into characters" in segmentation_note([row(JAPANESE)])
    assert "Chinese is cut into characters" in segmentation_note([row(CHINESE)])
    both = segmentation_note([row("one cat"), row(CHINESE)])
    assert "Chinese" in both and "runs of letters" in both and both.endswith("BLEU of all texts together: zh")
    assert "runs of letters" in segmentation_note(
        [row("The capital of Japan is 東京, which has many people")]
    )


@pytest.mark.parametrize("metric", [*NAMES, "regex:.*"])
@pytest.mark.parametrize("answer", ["A", "the", "Paris", "+", "0", "。", "猫"])
def test_writing_nothing_is_never_right(metric: str, answer: str) -> None:
    if metric == "numeric":
        answer = "0"
    assert score(metric, "", [answer]) == 0
    assert score(metric, " \n", [answer]) == 0


@pytest.mark.parametrize("metric", NAMES)
def test_of_several_answers_the_best_counts(metric: str) -> None:
    written, right, wrong = "12 cats sat on the mat", "12 cats sat on the mat", "3 dogs"
    assert score(metric, written, [wrong, right]) == pytest.approx(1)
    assert score(metric, written, [wrong]) < 1


def test_metrics_and_patterns_that_are_none() -> None:
    with pytest.raises(InputError, match="unknown metric 'meteor'"):
        score("meteor", "a", ["a"])
    with pytest.raises(InputError, match="no regular expression"):
        check_metric("regex:(")
    for name in NAMES:
        check_metric(name)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for metric, package in (("bleu", "sacrebleu"), ("rougeL", "rouge-score")):
        with pytest.raises(InputError, match=f"needs {package}, which is not installed"):
            check_metric(metric)


class Writer:
    """Writes what it is told to."""

    work = Work()

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def likelihoods(self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *_: Any) -> Any:
        return [[Likelihood(-1.0, 1, False, 3) for _ in some] for some in continuations]

    def write(self, *_: Any) -> list[str]:
        return self._texts

    def length(self, text: str) -> int:
        return len(text.split())


@pytest.mark.parametrize(("legacy", "right"), [(False, 0.0), (True, 1.0)])
def test_the_prompt_counts_under_the_legacy_rule_only(legacy: bool, right: float) -> None:
    asked = [row("A", "Is A or B older? The answer is")]
    writing = Writing(new_tokens=4, stop=(), legacy=legacy)
    (found,) = score_answers(Writer(""), asked, "contains", writing, lambda *_: None)
    assert found.values["contains"] == right and found.predicted == ""
    (found,) = score_answers(Writer(" A"), asked, "contains", writing, lambda *_: None)
    assert found.values["contains"] == 1.0


def test_accents_may_be_composed_or_not() -> None:
    for written, answer in (("A cafe\u0301.", "café"), ("a CAFÉ", "cafe\u0301")):
        assert score("contains", written, [answer]) == 1.0
        assert score("exact", written.strip(".Aa "), [answer]) == float("É" not in written)
        assert score("regex:(?i)caf.+[^.]", written, [answer]) == float("É" not in written)
    assert score("contains", "a cafe", ["café"]) == 0.0


def test_the_legacy_rule_is_about_the_joined_text() -> None:
    assert legacy_contains("It is Par", "is now", " PARIS ")
    assert not legacy_contains("It is Par", "nothing", "Paris")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3,5", 3.5),
        ("it is 0,500 then", 0.5),
        ("1 234", 1234),
        ("12 345 678,5 in all", 12345678.5),
        ("1\u202f234 and no more", 1234),
        ("1'234.5", 1234.5),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1.234.567", 1234567),
        ("1.234", 1.234),
        ("1,2,3", 3),
        ("7 234 12", 12),
        ("in 2020 100", 100),
        ("5, 234", 234),
        ("-3,5", -3.5),
        ("2,5e3", 2500),
    ],
)
def test_numbers_as_they_are_written_in_many_places(text: str, number: float) -> None:
    assert score("numeric", text, [repr(number)]) == 1.0


@pytest.mark.parametrize(("written", "right"), [("2,5", "3,5"), ("1 234", "5 234"), ("1.234,5", "9.234,5")])
def test_numbers_that_end_alike_are_not_the_same(written: str, right: str) -> None:
    assert score("numeric", written, [right]) == 0.0
    assert score("numeric", right, [right]) == 1.0
