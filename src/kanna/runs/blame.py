"""Which changed matrix does the harm: each is put back alone, and what flipped is asked again."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kanna.calibration.passage import replaced
from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.verdict.comparison import Blame

# Asked again: which examples, by place in the list of flips, are right now.
Ask = Callable[[], Sequence[bool]]


def changed_modules(base: nn.Module, new: nn.Module) -> list[str]:
    """Paths of modules whose own weights differ or are stored in another form, in the model's order.

    Raises:
        InputError: The models have different modules, so that nothing can be put back.
    """
    paths = []
    for path, module in _leaves(base):
        other = _at(new, path)
        if _sizes(module) != _sizes(other):
            raise _other_kind(f"{path} has other sizes")
        if _differs(module, other):
            paths.append(path)
    if not paths:
        raise InputError("no matrix of the two models differs", "compare a model with what was made of it")
    return paths


def blame(
    base: nn.Module, new: nn.Module, lost: Sequence[bool], ask: Ask, progress: Progress = lambda *_: None
) -> list[Blame]:
    """Put each changed module of `base` into `new` alone and ask again; the most repairs first.

    `new` is ours to change, and is as before when this returns.

    Args:
        lost: Of each flipped example, whether it went from right to wrong (else from wrong to right).
        ask: Scores the flipped examples with `new` as it is at that moment.
    """
    paths = changed_modules(base, new)
    blamed = []
    for done, path in enumerate(paths):
        progress("blame", done, len(paths))
        with replaced(new, [path], [base.get_submodule(path)]):
            right = ask()
        repaired = sum(now for now, was_lost in zip(right, lost, strict=True) if was_lost)
        undone = sum(not now for now, was_lost in zip(right, lost, strict=True) if not was_lost)
        blamed.append(Blame(matrix=path, repaired=repaired, undone=undone))
    progress("blame", len(paths), len(paths))
    return sorted(blamed, key=lambda matrix: (-matrix.repaired, matrix.undone))


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with a weight matrix of their own."""
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if path and isinstance(weight, nn.Parameter) and weight.dim() == 2:
            yield path, module


def _at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise _other_kind(f"{path} is missing in one") from None


def _other_kind(how: str) -> InputError:
    return InputError(f"the models are not of one kind: {how}", "compare a model with its own base")


def _sizes(module: nn.Module) -> tuple[int, ...]:
    """(out, in) of a linear layer in any form; of other modules the shape of their weight."""
    out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(out, int) and isinstance(into, int):
        return out, into
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
    return shape[::-1] if isinstance(module, Conv1D) else shape


def _differs(base: nn.Module, new: nn.Module) -> bool:
    """Another class (a form of kanna), or other numbers."""
    if type(base) is not type(new):
        return True
    mine, theirs = base.state_dict(), new.state_dict()
    return mine.keys() != theirs.keys() or any(not torch.equal(mine[key], theirs[key]) for key in mine)
