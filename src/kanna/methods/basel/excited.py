"""By which tokens a basis is excited most, in the rows that were learnt and as the model was.

A basis reads its input x through v^T x, whatever it then writes. So its tokens are those where |v^T x| is
largest over some of the rows, each token once, at its largest.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import body_call
from kanna.training.examples import Example

# Tokens of each basis, tokens around each of them, and tokens that are read in all.
_TOP, _AROUND, _READ = 5, 6, 8192


@dataclass(frozen=True)
class Excited:
    """A token, with what stands around it.

    Args:
        value: |v^T x| there, v of norm 1.
    """

    token: str
    before: str
    after: str
    value: float


@dataclass(frozen=True)
class Shown:
    """A basis that is shown.

    Args:
        matrix: Its name.
        place: There.
        tokens: That excite it most.
    """

    matrix: str
    place: int
    tokens: tuple[Excited, ...]


@dataclass(frozen=True)
class Reader:
    """The right side of a basis.

    Args:
        module: Path of the module whose input it reads.
        direction: (n,) of norm 1.
    """

    module: str
    direction: Tensor


@dataclass
class _Peaks:
    """Token -> its largest value, and where that was: (value, row, place)."""

    found: dict[int, tuple[float, int, int]] = field(default_factory=dict)

    def take(self, values: Sequence[float], ids: Sequence[int], row: int) -> None:
        for place, (value, token) in enumerate(zip(values, ids, strict=True)):
            if value > self.found.get(token, (-1.0, 0, 0))[0]:
                self.found[token] = value, row, place

    def top(self) -> list[tuple[float, int, int]]:
        """The largest first; of equals the one that was read first."""
        return sorted(self.found.values(), key=lambda peak: (-peak[0], peak[1], peak[2]))[:_TOP]


@torch.no_grad()
def excited(
    model: nn.Module, tokenizer: Any, readers: Sequence[Reader], examples: Sequence[Example]
) -> list[tuple[Excited, ...]]:
    """Of each reader the tokens that excite it most; none where a module does not read token by token."""
    some = list(_some(examples))
    peaks = [_Peaks() for _ in readers]
    device = next(model.parameters()).device
    with _listening(model, readers) as seen:
        for row, example in enumerate(some):  # one row at a time: padding must not count
            seen.clear()
            body_call(model, torch.tensor([example.ids], device=device))
            for number, values in seen.items():
                if len(values) == len(example):
                    peaks[number].take(values.tolist(), example.ids, row)
    return [
        tuple(_told(tokenizer, some[row].ids, place, value) for value, row, place in p.top()) for p in peaks
    ]


def _some(examples: Sequence[Example]) -> Iterator[Example]:
    """The first ones, of at most so many tokens together; at least one."""
    read = 0
    for example in examples:
        if read and read + len(example) > _READ:
            return
        read += len(example)
        yield example


@contextmanager
def _listening(model: nn.Module, readers: Sequence[Reader]) -> Iterator[dict[int, Tensor]]:
    """Within the block, number of the reader -> (tokens,) largest values of the calls of its module."""
    seen: dict[int, Tensor] = {}

    def hook(number: int, reader: Reader) -> Any:
        def listen(module: nn.Module, given: tuple[Any, ...]) -> None:
            hidden = given[0].reshape(-1, given[0].shape[-1]).float()
            values = (hidden @ reader.direction.to(hidden)).abs().cpu()
            known = seen.get(number)
            if known is not None and len(known) == len(values):
                values = torch.maximum(known, values)
            seen[number] = values

        return listen

    with ExitStack() as stack:
        for number, reader in enumerate(readers):
            module = model.get_submodule(reader.module)
            stack.enter_context(module.register_forward_pre_hook(hook(number, reader)))
        yield seen


def _told(tokenizer: Any, ids: Sequence[int], place: int, value: float) -> Excited:
    before = ids[max(0, place - _AROUND) : place]
    after = ids[place + 1 : place + 1 + _AROUND]
    token = _text(tokenizer, ids[place : place + 1])
    return Excited(token, _text(tokenizer, before), _text(tokenizer, after), value)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids))) if ids else ""
