"""Masked language models: how likely an answer is at masks in its place, all filled at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.scorers.layout import ENCODER_NOTES, Layout, encoder_layout
from kanna.tasks.scorers.likelihood import Batch, Passes, most_logits, only_at
from kanna.tasks.scorers.scorer import TokenScorer, by_row
from kanna.tasks.tokens.cloze import Cloze, Masked
from kanna.tasks.tokens.padded import batches, fit, inputs, vocabulary_of
from kanna.tasks.tokens.special import check_known


def fills_masks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a masked language model, by the name of its class."""
    return str((config.get("architectures") or [""])[0]).endswith("ForMaskedLM")


@dataclass(frozen=True)
class _Asked:
    """An answer at the masks of a text."""

    text: Masked
    target: tuple[int, ...]


@dataclass
class MaskedScorer(TokenScorer):
    """A model that fills masks.

    An answer of n tokens is asked at n masks: its log-likelihood is the sum of log p(token | text with all n
    masked). Answers of one length at one place share a forward pass. The number of masks tells the model how
    long the answer is, which `work.notes` says wherever answers, not choices, are asked.

    Args:
        cloze: Of its tokenizer.
        batch_tokens: Tokens per forward pass, about.
    """

    cloze: Cloze
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        self.tokenizer = self.cloze.tokenizer

    def passes(self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Passes:
        rows = by_row(self._asked, prompts, continuations)
        flat = [answer for row in rows for answer in row]
        texts = list(dict.fromkeys(answer.text for answer in flat))
        askers: dict[Masked, list[int]] = {text: [] for text in texts}
        for number, answer in enumerate(flat):
            askers[answer.text].append(number)
        groups = list(self._passes(texts))
        self._count(rows, groups)
        batches = tuple(partial(_batch, self.model, some, askers, flat) for some in groups)
        return Passes(batches, tuple(map(len, rows)), logits_at_masks)

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        raise InputError(
            "a masked language model does not write text", "use a metric that needs none, such as greedy"
        )

    def _asked(self, prompt: str, answers: Sequence[str]) -> list[_Asked]:
        blank = self.cloze.blank(prompt)
        targets = [self.cloze.target(blank, answer) for answer in answers]
        texts = {
            count: self.cloze.masked(blank, count) for count in sorted({len(target) for target in targets})
        }
        known = vocabulary_of(self.model)
        for ids in (*targets, *(text.ids for text in texts.values())):
            check_known(ids, known, self.tokenizer)
        return [_Asked(texts[len(target)], target) for target in targets]

    def _passes(self, texts: Sequence[Masked]) -> Iterator[list[Masked]]:
        if not texts:
            return
        sizes, wanted = [len(text.ids) for text in texts], [len(text.places) for text in texts]
        most_places = most_logits(self.model)
        fits = partial(
            fit, sizes=sizes, wanted=wanted, batch_tokens=self.batch_tokens, most_wanted=most_places
        )
        layout = encoder_layout(self.model, [text.ids for text in texts], partial(self._tried, texts), fits)
        self.work.layouts += ENCODER_NOTES.get(layout, ())
        most = 1 if layout is Layout.SINGLE else self.batch_tokens
        equal = layout is Layout.EQUAL
        for some in batches(sizes, wanted, most, most_places, equal):
            yield [texts[i] for i in some]

    def _tried(self, texts: Sequence[Masked], rows: Sequence[int]) -> list[Tensor]:
        """Of some texts in one forward pass, logits (places, vocabulary) at their masks."""
        given = inputs(self.model, [texts[row].ids for row in rows])
        width = given["input_ids"].shape[1]
        places = [[i * width + place for place in texts[row].places] for i, row in enumerate(rows)]
        whole = torch.tensor([place for some in places for place in some], device=given["input_ids"].device)
        return list(logits_at_masks(self.model, given, whole).split(list(map(len, places))))

    def _count(self, rows: Sequence[Sequence[_Asked]], passes: Sequence[Sequence[Masked]]) -> None:
        work, notes = self.work, self.work.notes
        work.cut += sum(any(answer.text.cut for answer in row) for row in rows)
        work.forward_tokens += sum(len(some) * max(len(text.ids) for text in some) for some in passes)
        work.naive_tokens += sum(len(answer.text.ids) for row in rows for answer in row)
        right = sum(any(answer.text.cut_right for answer in row) for row in rows)
        if right:
            notes.append(f"cut on the right, too, for want of text before the answer: {right:,} prompts")
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        strange = sum(unknown in answer.target for row in rows for answer in row)
        if strange:
            notes.append(f"answers with tokens that the vocabulary does not know: {strange:,}")


def _batch(
    model: nn.Module,
    texts: Sequence[Masked],
    askers: Mapping[Masked, Sequence[int]],
    asked: Sequence[_Asked],
) -> Batch:
    """One forward pass: each mask of each text is a place, and every asker of a text has a target at each."""
    given = inputs(model, [text.ids for text in texts])
    width = given["input_ids"].shape[1]
    places: list[int] = []
    index: list[int] = []
    tokens: list[int] = []
    numbers: list[int] = []
    for row, text in enumerate(texts):
        here = range(len(places), len(places) + len(text.places))
        places += [row * width + place for place in text.places]
        for number in askers[text]:
            index += here
            tokens += asked[number].target
            numbers += [number] * len(text.places)
    device = given["input_ids"].device
    whole, which, wanted = (torch.tensor(values, device=device) for values in (places, index, tokens))
    return Batch(inputs=given, places=whole, index=which, tokens=wanted, numbers=tuple(numbers))


def logits_at_masks(
    model: nn.Module, given: dict[str, Tensor], places: Tensor, gradients: bool = False
) -> Tensor:
    """(places, vocabulary) float32: logits at places of the flattened batch.

    The output layer sees these places only, unless the model multiplies with its weight by itself, as
    MobileBERT does: then logits of all places are computed, and the rest is thrown away.
    """
    with torch.set_grad_enabled(gradients):
        if model.get_output_embeddings() is None:  # type: ignore[operator]
            logits: Tensor = model(**given).logits
        else:
            with only_at(model, places):
                logits = model(**given).logits
    if logits.shape[:2] != (1, len(places)):
        logits = logits.flatten(0, 1)[places][None]
    return logits[0].float()
