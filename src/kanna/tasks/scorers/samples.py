"""What a model writes on its own: how long it gets, and how much it repeats itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kanna.tasks.scorers.scorer import Scorer

_GRAM = 4


@dataclass(frozen=True)
class Samples:
    """Texts written after prompts, greedily.

    Args:
        texts: One per prompt.
        words: Mean length.
        repetition: Share of four-word sequences that occurred before in the same text (0 for short texts).
        distinct: Distinct words over all words of all texts.
    """

    texts: tuple[str, ...]
    words: float
    repetition: float
    distinct: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_samples(scorer: Scorer, prompts: Sequence[str], new_tokens: int) -> Samples:
    """Continue every prompt by at most `new_tokens` tokens."""
    texts = scorer.write(prompts, new_tokens, (), lambda *_: None)
    split = [text.split() for text in texts]
    every = [word for words in split for word in words]
    return Samples(
        texts=tuple(texts),
        words=sum(map(len, split)) / len(split),
        repetition=sum(map(repetition, split)) / len(split),
        distinct=len(set(every)) / len(every) if every else 0.0,
    )


def repetition(words: Sequence[str]) -> float:
    """Share of the four-word sequences of a text that occurred earlier in it; 0 where there are none."""
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
