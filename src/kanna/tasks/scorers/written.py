"""What a model writes after each of many prompts, greedily, and only what is new."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from kanna.progress import Progress, told
from kanna.tasks.scorers.decoding import Prompt, decode
from kanna.tasks.scorers.layout import Fits, Found, Layout, Seen, layout_of, seen
from kanna.tasks.tokens.lots import bounds_of
from kanna.tasks.tokens.padded import batches, fit

# New tokens of prompts that are continued on trial.
_TRIED = 3
_NOTES = {
    Layout.EQUAL: "only prompts of equal length were continued together, since this model reads padding",
    Layout.SINGLE: "every prompt was continued by itself, since others beside it change what is written",
}


@dataclass(frozen=True)
class Written:
    """New text after one prompt.

    Args:
        text: Up to the first stop string, which is left out, and without special tokens.
        tokens: New tokens computed for it.
    """

    text: str
    tokens: int


@dataclass(frozen=True)
class WritePlan:
    """Which prompts are continued together.

    Args:
        batches: Prompts of each run, all of them once.
        notes: Where fewer go together than could.
    """

    batches: tuple[tuple[Prompt, ...], ...]
    notes: tuple[str, ...]


def plan_writing(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_tokens: int = 2048,
) -> WritePlan:
    """Prompts (token ids) of like length together, where that leaves what is written as it is.

    That is seen on a few of them, which are continued by a few tokens both ways.

    Args:
        batch_tokens: Tokens of prompts and answers in memory at a time, about.
    """
    order = sorted({tuple(prompt) for prompt in prompts}, key=len)
    made: list[tuple[Prompt, ...]] = []
    notes: dict[str, None] = {}
    for first, lot in _lots(order, max_new_tokens, bounds_of(model).turns):
        sizes = [len(prompt) + max_new_tokens for prompt in lot]
        fits = partial(fit, sizes=sizes, wanted=[0] * len(sizes), batch_tokens=batch_tokens, most_wanted=0)
        layout = _layout(model, tokenizer, lot, min(max_new_tokens, _TRIED), fits, first)
        if layout is not first:
            notes[_NOTES[layout]] = None
        most, equal = 1 if layout is Layout.SINGLE else batch_tokens, layout is Layout.EQUAL
        for some in batches(sizes, [0] * len(sizes), most, 0, equal):
            made.append(tuple(lot[i] for i in some))
    return WritePlan(tuple(made), tuple(notes))


def write(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    blank: bool = True,
    batch_tokens: int = 2048,
    plan: WritePlan | None = None,
    progress: Progress = lambda *_: None,
) -> list[Written]:
    """Continue every prompt (token ids) greedily.

    Args:
        stop: Texts at whose first appearance an answer ends.
        blank: Whether one of white space ends an answer that has nothing else before it.
        plan: That of these prompts; made if not given.

    Raises:
        InputError: Logits that are not finite.
    """
    plan = plan or plan_writing(model, tokenizer, prompts, max_new_tokens, batch_tokens)
    done = partial(_ended, stop=stop, blank=blank) if stop else None
    texts: dict[Prompt, Written] = {}
    for batch in told(progress, "generate", plan.batches):
        new = decode(model, tokenizer, batch, max_new_tokens, done).ids
        for prompt, ids in zip(batch, new, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            texts[prompt] = Written(shown(text, stop, blank), len(ids))
    return [texts[tuple(prompt)] for prompt in prompts]


def _lots(
    order: Sequence[Prompt], new: int, turns: Sequence[int]
) -> Iterator[tuple[Layout, Sequence[Prompt]]]:
    """Prompts on one side of every length at which a model changes, and the layout to try first.

    Those whose texts grow beyond such a length must do so in the same step.
    """
    lots: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in order:
        sides = tuple((len(prompt) > turn) + (len(prompt) + new - 1 > turn) for turn in turns)
        lots.setdefault(sides, []).append(prompt)
    for sides, lot in lots.items():
        yield Layout.EQUAL if 1 in sides else Layout.PADDED, lot


def _layout(
    model: nn.Module, tokenizer: Any, lot: Sequence[Prompt], new: int, fits: Fits, first: Layout
) -> Layout:
    def found(rows: Sequence[int], _: Layout = Layout.PADDED) -> Found:
        return _tried(model, tokenizer, lot, new, rows)

    return layout_of(model, list(map(len, lot)), found, lambda row: found([row]), fits, first)


def _tried(model: nn.Module, tokenizer: Any, lot: Sequence[Prompt], new: int, rows: Sequence[int]) -> Found:
    """Of some prompts continued in one run, what the model thinks after each token that it writes."""
    decoded = decode(model, tokenizer, [lot[row] for row in rows], new, logits=True)
    found: dict[Hashable, Seen] = {}
    for step, logits in enumerate(decoded.logits):
        for row, ids, own in zip(rows, decoded.ids, logits, strict=True):
            found[row, tuple(ids[:step])] = seen(own)
    return found


def _ended(text: str, stop: Sequence[str], blank: bool) -> bool:
    return any(_until(text, end, blank)[1] for end in stop)


def shown(text: str, stop: Sequence[str], blank: bool) -> str:
    """A text up to the first of these ends.

    Args:
        blank: Whether an end of white space counts where nothing else stands before it.
    """
    for end in stop:
        text = _until(text, end, blank)[0]
    return text


def _until(text: str, end: str, blank: bool) -> tuple[str, bool]:
    """A text up to an end, and whether it has one."""
    before, found, rest = text.partition(end)
    while found and not blank and end.isspace() and not before.strip():
        before, found, rest = rest.partition(end)
    return before, bool(found)
