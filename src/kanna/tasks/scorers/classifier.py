"""Classification heads: how likely each choice of a row is, by the label it stands for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.progress import Progress, told
from kanna.tasks.data.units import plain
from kanna.tasks.scorers.layout import ENCODER_NOTES, Fits, Layout, encoder_layout
from kanna.tasks.scorers.likelihood import Likelihood, check_finite
from kanna.tasks.scorers.scorer import Scorer, by_row
from kanna.tasks.tokens.padded import Wrapped, batches, fit, inputs, pad_token, vocabulary_of, wrapped
from kanna.tasks.tokens.special import check_known

_UNNAMED = re.compile(r"label_\d+")
_SHOWN = 12


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model with a classification head, by the name of its class."""
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of a config.json, in the order of the head's outputs.

    Raises:
        InputError: The head is no choice of one among several labels.
    """
    kind = config.get("problem_type")
    named = config.get("id2label")
    count = len(named) if named else int(config.get("num_labels") or 2)  # config.json leaves out the default
    if kind not in (None, "single_label_classification") or count < 2:
        what = kind or f"a head of {count} label"
        raise InputError(
            f"the classification head does not choose one of several labels: {what}",
            "give a model with problem_type single_label_classification and two labels or more",
        )
    if not named:
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        return tuple(str(label) for _, label in sorted((int(key), label) for key, label in named.items()))
    except (ValueError, TypeError):
        raise InputError(
            f"id2label of config.json has keys that are no numbers: {list(named)[:_SHOWN]}", "mend it"
        ) from None


def match(labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Of each row, which label each of its choices stands for.

    By text, upper and lower case alike. Where labels have no names but LABEL_0, LABEL_1, ..., by place, which
    takes the same choices in the same order in every row, one for each label.

    Raises:
        InputError: A choice stands for no label, or two for one.
    """
    known = {_key(label): number for number, label in enumerate(labels)}
    strange = [(i, choice) for i, row in enumerate(choices) for choice in row if _key(choice) not in known]
    if strange and all(_UNNAMED.fullmatch(_key(label)) for label in labels):
        return _by_place(labels, choices)
    if strange or len(known) < len(labels):
        what = (
            f"row {strange[0][0] + 1} has the choice {strange[0][1]!r}, which is none of the model's labels"
            if strange
            else "two labels of the model differ by upper and lower case only"
        )
        raise InputError(f"{what}: {_list(labels)}", "write the choices as the model's labels")
    places = [tuple(known[_key(choice)] for choice in row) for row in choices]
    double = next((i for i, row in enumerate(places) if len(set(row)) < len(row)), None)
    if double is not None:
        raise InputError(
            f"row {double + 1} has two choices for one label: {_list(choices[double])}", "remove one"
        )
    return places


def _by_place(labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    unnamed = f"the model's {len(labels)} labels have no names ({_list(labels)})"
    for number, row in enumerate(choices, 1):
        if len(row) != len(labels):
            raise _no_place(f"{unnamed}, and row {number} has {len(row)} choices ({_list(row)})")
        if tuple(row) != tuple(choices[0]):
            said = f"row {number} has the choices {_list(row)}, and row 1 {_list(choices[0])}"
            raise _no_place(f"{unnamed}, and {said}")
    return [tuple(range(len(labels)))] * len(choices)


def _no_place(problem: str) -> InputError:
    return InputError(
        problem,
        "give every row the same choices, one for each label in their order, or name the labels in "
        "id2label of config.json",
    )


def _key(text: str) -> str:
    return plain(text.strip().casefold())


def _list(texts: Sequence[str]) -> str:
    more = f", ... ({len(texts)})" if len(texts) > _SHOWN else ""
    return ", ".join(text.strip() for text in texts[:_SHOWN]) + more


@dataclass
class ClassifierScorer(Scorer):
    """A model with a classification head.

    The log-likelihood of a choice is its label's log-probability among the labels of the row's choices.

    Args:
        tokenizer: Of the model.
        labels: In the order of the head's outputs.
        limit: Most tokens the model may read.
        refuse_long: Raise instead of cutting prompts from the left.
        batch_tokens: Tokens per forward pass, about.
    """

    tokenizer: Any
    labels: tuple[str, ...]
    limit: int
    refuse_long: bool = False
    batch_tokens: int = 2048

    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        columns = match(self.labels, continuations)
        texts = by_row(self._text, prompts)
        distinct = list(dict.fromkeys(texts))
        logits = self._logits(distinct, progress)
        self.work.naive_tokens += sum(map(len, texts))
        return [_row(logits[text], some, ranks) for text, some in zip(texts, columns, strict=True)]

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        raise InputError("a classification head does not write text", "give rows with choices")

    def _text(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt, its left cut to fit."""
        text = wrapped(self.tokenizer, prompt)
        over = max(0, len(text) - self.limit)
        if over and self.refuse_long:
            raise InputError(
                f"a prompt has {len(text)} tokens, and the context is {self.limit}",
                "shorten it, raise --context, or allow cutting from the left (no --refuse-long)",
            )
        if not text.ids or over > len(text.body):
            raise InputError(f"the prompt {prompt[:80]!r} has no tokens to read", "give another")
        check_known(text.ids, vocabulary_of(self.model), self.tokenizer)
        self.work.cut += bool(over)
        return Wrapped(text.head, text.body[over:], text.tail).ids

    def _logits(self, texts: Sequence[tuple[int, ...]], progress: Progress) -> dict[tuple[int, ...], Tensor]:
        """Text -> its logits (labels,), float64."""
        # Heads on decoders look for the last token that is no padding; without one they take single rows.
        layout = Layout.SINGLE
        if pad_token(self.model) is not None:
            layout = encoder_layout(self.model, texts, partial(self._tried, texts), self._fits(texts))
            self.work.layouts += ENCODER_NOTES.get(layout, ())
        most = 1 if layout is Layout.SINGLE else self.batch_tokens
        equal = layout is Layout.EQUAL
        passes = list(batches(list(map(len, texts)), [1] * len(texts), most, len(texts), equal))
        logits_of: dict[tuple[int, ...], Tensor] = {}
        for some in told(progress, "labels", passes):
            rows = [texts[i] for i in some]
            logits = self._heads(inputs(self.model, rows))
            check_finite(logits)
            logits_of |= dict(zip(rows, logits.double().cpu(), strict=True))
            self.work.forward_tokens += len(rows) * max(map(len, rows))
        return logits_of

    def _fits(self, texts: Sequence[tuple[int, ...]]) -> Fits:
        sizes, wanted = list(map(len, texts)), [1] * len(texts)
        return partial(
            fit, sizes=sizes, wanted=wanted, batch_tokens=self.batch_tokens, most_wanted=len(texts)
        )

    def _tried(self, texts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> list[Tensor]:
        """Of some texts in one forward pass, the logits (labels,)."""
        return list(self._heads(inputs(self.model, [texts[row] for row in rows])))

    def _heads(self, given: dict[str, Tensor]) -> Tensor:
        """(rows, labels)"""
        with torch.no_grad():
            logits: Tensor = self.model(**given).logits
        return logits


def _row(logits: Tensor, columns: Sequence[int], ranks: bool) -> list[Likelihood]:
    """Of each choice, by its column of the logits (labels,)."""
    logs: list[float] = torch.log_softmax(logits[list(columns)], -1).tolist()
    best = max(range(len(logs)), key=lambda i: logs[i])
    return [
        Likelihood(log, 1, i == best, sum(other > log for other in logs) if ranks else None)
        for i, log in enumerate(logs)
    ]
