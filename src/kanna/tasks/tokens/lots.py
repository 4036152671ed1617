"""Which rows may stand side by side at all, by the lengths at which a model's own code does something else.

Some models compute every row of a forward pass with other rotary factors as soon as one of them is longer
than the context the model was first trained on (LongRoPE). A text that is longer than an attention window, or
than a chunk within which tokens see each other, needs a mask that only the model's own code makes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TURNS = ("original_max_position_embeddings",)
_WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_window",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
)


@dataclass(frozen=True)
class Bounds:
    """Lengths in tokens that matter to a model.

    Args:
        turns: Beyond one of these, all rows of a forward pass are computed otherwise.
        windows: Texts beyond one of these need a mask of the model's own.
    """

    turns: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lot:
    """Rows on the same side of all bounds.

    Args:
        rows: Their numbers.
        over: Each has more tokens than this bound; 0 where it is below all.
        windowed: Whether that is more than some window.
    """

    rows: tuple[int, ...]
    over: int
    windowed: bool


def bounds_of(model: Any) -> Bounds:
    """What the configuration of a model says of lengths, wherever it says so."""
    config = getattr(model, "config", None)
    if config is None:
        return Bounds()
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return Bounds(_found(text.to_dict(), _TURNS), _found(text.to_dict(), _WINDOWS))


def lots(sizes: Sequence[int], bounds: Bounds) -> list[Lot]:
    """Rows of these sizes apart at every bound, the short ones first."""
    rows: dict[int, list[int]] = {}
    for row, size in enumerate(sizes):
        rows.setdefault(over(size, (*bounds.turns, *bounds.windows)), []).append(row)
    narrow = min(bounds.windows, default=None)
    return [
        Lot(tuple(some), bound, narrow is not None and bound >= narrow)
        for bound, some in sorted(rows.items())
    ]


def over(size: int, bounds: Sequence[int]) -> int:
    """The largest bound that a size is more than; 0 if none."""
    return max((bound for bound in bounds if size > bound), default=0)


def _found(config: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...]:
    """All positive numbers under these names, in a configuration and what lies in it."""
    return tuple(sorted({number for number in _numbers(config, names) if number > 0}))


def _numbers(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers({str(key): inner for key, inner in value.items()}, names)
        elif name in names:
            some = value if isinstance(value, list | tuple) else [value]
            yield from (number for number in some if type(number) is int)
