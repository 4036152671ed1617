"""Scores of a written answer against the right ones; with several right answers, the best score counts."""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.data.units import plain
from kanna.tasks.metrics.numbers import last_number

_INSTALL = "pip install 'kanna[eval]'"
_ARTICLES = ("a", "an", "the")
_KANA = re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile(r"[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_CJK = re.compile(f"{_KANA.pattern}|{_HAN.pattern}")
_CJK_SHARE = 0.2
# Of two numbers that are equal but for rounding in float64.
_ROUNDING = 1e-12
REGEX, CONTAINS, NUMERIC, BLEU = "regex:", "contains", "numeric", "bleu"


def score(metric: str, written: str, answers: Sequence[str]) -> float:
    """One written text by one metric, from 0 to 1 (bleu too).

    exact: equal but for spaces around.
    exact_normalized: also without case, punctuation and English articles, unless nothing would be left.
    contains: an answer stands somewhere in the text, without case.
    regex:PATTERN: what group 1, or all, of the first match says equals an answer.
    numeric: the last number of the text equals the last of an answer; answers without one do not count.
    f1: harmonic mean of precision and recall of words, normalised as in exact_normalized.
    bleu: BLEU-4 of the sentence with sacrebleu's exponential smoothing and, in texts of fewer than four
        words, effective order.
    rouge1, rouge2, rougeL: F measure.

    Raises:
        InputError: An unknown metric, a pattern that is none, an answer without a number for `numeric`, or a
            library that is not installed.
    """
    if metric.startswith(REGEX):
        captured = _captured(metric, written)
        wanted = [plain(answer.strip()) for answer in answers]
        return float(captured is not None and plain(captured) in wanted)
    if metric not in _SCORES:
        raise InputError(f"unknown metric {metric!r}", f"known: {', '.join(_SCORES)}, {REGEX}PATTERN")
    if metric == NUMERIC:
        answers = _with_numbers(answers)
    return max(_SCORES[metric](written, answer) for answer in answers)


def legacy_contains(prompt: str, written: str, answer: str) -> bool:
    """`contains` over prompt and new text together, as a published code has it."""
    return answer.strip().lower() in (prompt + written).lower()


def corpus_bleu(written: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of all texts together, from 0 to 1; the tokenizer is that of all answers' script."""
    most = max(map(len, answers))
    references = [[accepted[i] if i < len(accepted) else None for accepted in answers] for i in range(most)]
    metric = _bleu_metric(_bleu_tokenizer("".join(text for accepted in answers for text in accepted)), False)
    return float(metric.corpus_score(list(written), references).score) / 100


def segmentation_note(rows: Sequence[Row]) -> str:
    """How the texts of a task are cut into words."""
    texts = [text for row in rows for text in row.answers or (row.answer or row.text,)]
    scripts = sorted({_script(text) for text in texts})
    words = {
        "": "words are runs of letters and digits (BLEU: sacrebleu's 13a)",
        "zh": "Chinese is cut into characters (BLEU: sacrebleu's zh)",
        "ja": "Japanese is cut into characters (BLEU: MeCab with the IPA dictionary)",
    }
    together = f"; BLEU of all texts together: {_bleu_tokenizer(''.join(texts))}" if len(scripts) > 1 else ""
    return "; ".join(words[script] for script in scripts) + together


def tokens(text: str) -> list[str]:
    """Lower-case words; Chinese and Japanese by character."""
    return "".join(map(_spaced, unicodedata.normalize("NFC", text).lower())).split()


def _spaced(sign: str) -> str:
    """A sign of a word as it is, one that is a word by itself between spaces, any other as a space."""
    if not (sign.isalnum() or unicodedata.category(sign).startswith("M")):
        return " "
    return f" {sign} " if _CJK.match(sign) else sign


def check_metric(metric: str) -> None:
    """Raise InputError for a pattern that is none, or a library that is missing, before any long work."""
    if metric.startswith(REGEX):
        _pattern(metric)
    elif metric == BLEU:
        _library("sacrebleu")
    elif metric.startswith("rouge"):
        _library("rouge_score.rouge_scorer")


def check_answers(metric: str, rows: Sequence[Row]) -> None:
    """Raise InputError where answers cannot be scored by a metric, before any long work."""
    for number, row in enumerate(rows):
        try:
            if metric == NUMERIC:
                _with_numbers(row.accepted)
            elif metric == BLEU:
                _bleu_metric(_bleu_tokenizer(row.accepted[0]), True)
        except InputError as error:
            raise InputError(f"row {number + 1}: {error.problem}", error.remedy) from None


def _exact(written: str, answer: str) -> float:
    return float(plain(written.strip()) == plain(answer.strip()))


def _normalized(text: str) -> str:
    """An answer such as A, or +, must not become an empty text, which writing nothing would equal."""
    lower = unicodedata.normalize("NFC", text).lower()
    punctuation = {
        sign for sign in lower if sign in string.punctuation or unicodedata.category(sign).startswith("P")
    }
    words = "".join(" " if sign in punctuation else sign for sign in lower).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words) or lower.strip()


def _exact_normalized(written: str, answer: str) -> float:
    return float(_normalized(written) == _normalized(answer))


def _contains(written: str, answer: str) -> float:
    return float(plain(answer.strip().lower()) in plain(written.lower()))


def _numeric(written: str, answer: str) -> float:
    wanted, last = last_number(answer), last_number(written)
    if wanted is None or last is None:
        return 0.0
    return float(math.isclose(last, wanted, rel_tol=_ROUNDING))


def _with_numbers(answers: Sequence[str]) -> list[str]:
    numbered = [answer for answer in answers if last_number(answer) is not None]
    if not numbered:
        raise InputError(f"the answer {answers[0]!r} holds no number", "use another metric than numeric")
    return numbered


def _f1(written: str, answer: str) -> float:
    mine, theirs = tokens(_normalized(written)), tokens(_normalized(answer))
    if not mine or not theirs:
        return _exact_normalized(written, answer)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / (len(mine) + len(theirs))


def _bleu(written: str, answer: str) -> float:
    metric = _bleu_metric(_bleu_tokenizer(answer), True)
    return min(1.0, float(metric.sentence_score(written, [answer]).score) / 100)


@lru_cache
def _bleu_metric(tokenizer: str, short: bool) -> Any:
    """sacrebleu's; `short` leaves out the orders of n-grams that a short text does not have."""
    sacrebleu = _library("sacrebleu")
    try:
        return sacrebleu.metrics.BLEU(tokenize=tokenizer, effective_order=short)
    except (ImportError, RuntimeError) as error:
        raise InputError(f"BLEU's tokenizer {tokenizer} cannot be loaded: {error}", _INSTALL) from error


def _bleu_tokenizer(text: str) -> str:
    return {"zh": "zh", "ja": "ja-mecab"}.get(_script(text), "13a")


def _rouge(kind: str) -> Any:
    def scored(written: str, answer: str) -> float:
        # Its own tokenizer drops every letter that is not ASCII.
        words = SimpleNamespace(tokenize=tokens)
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=words)
        return float(scorer.score(answer, written)[kind].fmeasure)

    return scored


_SCORES: dict[str, Any] = {
    "exact": _exact,
    "exact_normalized": _exact_normalized,
    CONTAINS: _contains,
    NUMERIC: _numeric,
    "f1": _f1,
    BLEU: _bleu,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}
NAMES = tuple(_SCORES)


def _captured(metric: str, written: str) -> str | None:
    match = _pattern(metric).search(written)
    if match is None:
        return None
    captured = match.group(1) if match.re.groups else match.group(0)
    return None if captured is None else str(captured).strip()


@lru_cache
def _pattern(metric: str) -> re.Pattern[str]:
    try:
        return re.compile(metric.removeprefix(REGEX))
    except re.error as error:
        raise InputError(f"{metric!r} is no regular expression: {error}", "mend the pattern") from None


def _script(text: str) -> str:
    """ja, zh or empty, by the letters that are Chinese characters or kana."""
    letters = sum(sign.isalnum() for sign in text)
    kana, han = len(_KANA.findall(text)), len(_HAN.findall(text))
    if not letters or kana + han < _CJK_SHARE * letters:
        return ""
    return "ja" if kana else "zh"


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise InputError(f"this metric needs {package}, which is not installed", _INSTALL) from error
