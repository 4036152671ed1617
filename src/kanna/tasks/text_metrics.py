"""Scores of a written answer against the right ones; with several right answers, the best score counts."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kanna.errors import InputError
from kanna.tasks.rows import Row

_INSTALL = "pip install 'kanna[eval]'"
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_CJK = re.compile(f"{_KANA.pattern}|{_HAN.pattern}")
_TOKENS = re.compile(rf"{_CJK.pattern}|(?:(?!{_CJK.pattern})\w)+")
_CJK_SHARE = 0.2
_CLOSE = 1e-6
REGEX = "regex:"


def score(metric: str, written: str, answers: Sequence[str]) -> float:
    """One written text by one metric, from 0 to 1 (bleu too).

    exact: equal but for spaces around.
    exact_normalized: also without case, punctuation and English articles.
    contains: an answer stands somewhere in the text, without case.
    regex:PATTERN: what group 1, or all, of the first match says equals an answer.
    numeric: the last number of the text equals the last of an answer.
    f1: harmonic mean of precision and recall of words, normalised as in exact_normalized.
    bleu: BLEU-4 of the sentence with sacrebleu's exponential smoothing.
    rouge1, rouge2, rougeL: F measure.

    Raises:
        InputError: An unknown metric, a pattern that is none, an answer without a number for `numeric`, or a
            library that is not installed.
    """
    if metric.startswith(REGEX):
        return float(any(_captured(metric, written) == answer.strip() for answer in answers))
    if metric not in _SCORES:
        raise InputError(f"unknown metric {metric!r}", f"known: {', '.join(_SCORES)}, {REGEX}PATTERN")
    return max(_SCORES[metric](written, answer) for answer in answers)


def legacy_contains(prompt: str, written: str, answer: str) -> bool:
    """`contains` over prompt and new text together, as the published code of LASER has it."""
    return answer.strip().lower() in (prompt + written).lower()


def corpus_bleu(written: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of all texts together, from 0 to 1; the tokenizer is that of the first row's script."""
    sacrebleu = _library("sacrebleu")
    most = max(map(len, answers))
    references = [[one[i] if i < len(one) else None for one in answers] for i in range(most)]
    metric = sacrebleu.metrics.BLEU(tokenize=_bleu_tokenizer(answers[0][0]))
    return float(metric.corpus_score(list(written), references).score) / 100


def segmentation_note(rows: Sequence[Row]) -> str:
    """How the texts of a task are cut into words."""
    found = {_script(row.answer or row.text) for row in rows}
    words = {
        "": "words are runs of letters and digits (BLEU: sacrebleu's 13a)",
        "zh": "Chinese is cut into characters (BLEU: sacrebleu's zh)",
        "ja": "Japanese is cut into characters (BLEU: MeCab with the IPA dictionary)",
    }
    return "; ".join(words[one] for one in sorted(found))


def tokens(text: str) -> list[str]:
    """Lower-case words; Chinese and Japanese by character."""
    return _TOKENS.findall(text.lower())


def check_metric(metric: str) -> None:
    """Raise InputError for a pattern that is none, or a library that is missing, before any long work."""
    if metric.startswith(REGEX):
        _pattern(metric)
    elif metric == "bleu":
        _library("sacrebleu")
    elif metric.startswith("rouge"):
        _library("rouge_score.rouge_scorer")


def _exact(written: str, answer: str) -> float:
    return float(written.strip() == answer.strip())


def _normalized(text: str) -> str:
    bare = "".join(" " if mark in string.punctuation else mark for mark in text.lower())
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _exact_normalized(written: str, answer: str) -> float:
    return float(_normalized(written) == _normalized(answer))


def _contains(written: str, answer: str) -> float:
    return float(answer.strip().lower() in written.lower())


def _numeric(written: str, answer: str) -> float:
    wanted, found = _last_number(answer), _last_number(written)
    if wanted is None:
        raise InputError(f"the answer {answer!r} holds no number", "use another metric than numeric")
    return float(found is not None and abs(found - wanted) <= _CLOSE * max(1.0, abs(wanted)))


def _last_number(text: str) -> float | None:
    """Thousands may have commas; a minus counts where no digit or letter stands before it."""
    bare = re.sub(r"(?<=[\w)])\s*-\s*(?=[\d.])", " ", text)
    found = _NUMBER.findall(bare)
    return float(found[-1].replace(",", "")) if found else None


def _f1(written: str, answer: str) -> float:
    mine, theirs = tokens(_normalized(written)), tokens(_normalized(answer))
    if not mine or not theirs:
        return float(mine == theirs)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / (len(mine) + len(theirs))


def _bleu(written: str, answer: str) -> float:
    sacrebleu = _library("sacrebleu")
    metric = sacrebleu.metrics.BLEU(tokenize=_bleu_tokenizer(answer), effective_order=True)
    return float(metric.sentence_score(written, [answer]).score) / 100


def _bleu_tokenizer(text: str) -> str:
    return {"zh": "zh", "ja": "ja-mecab"}.get(_script(text), "13a")


def _rouge(kind: str) -> Any:
    def scored(written: str, answer: str) -> float:
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=_Words())
        return float(scorer.score(answer, written)[kind].fmeasure)

    return scored


class _Words:
    """rouge_score's own tokenizer drops every letter that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


_SCORES: dict[str, Any] = {
    "exact": _exact,
    "exact_normalized": _exact_normalized,
    "contains": _contains,
    "numeric": _numeric,
    "f1": _f1,
    "bleu": _bleu,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}
NAMES = tuple(_SCORES)


def _captured(metric: str, written: str) -> str | None:
    found = _pattern(metric).search(written)
    if found is None:
        return None
    said = found.group(1) if found.re.groups else found.group(0)
    return None if said is None else str(said).strip()


@lru_cache
def _pattern(metric: str) -> re.Pattern[str]:
    try:
        return re.compile(metric.removeprefix(REGEX))
    except re.error as error:
        raise InputError(f"{metric!r} is no regular expression: {error}", "mend the pattern") from None


def _script(text: str) -> str:
    """ja, zh or empty, by the letters that are Chinese characters or kana."""
    letters = sum(one.isalnum() for one in text)
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
