"""Weights that config.json calls one and the files hold as two."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import Stored
from kanna.models.names import FileNames

# Bytes compared at once.
_PIECE = 2**22


def own_values(names: FileNames, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Parameters tied by config.json that have values of their own in the files: transformers unties them."""
    pairs = {target: (names.stored.get(target), names.stored.get(of)) for target, of in names.tied.items()}
    return tuple(
        target
        for target, (mine, other) in pairs.items()
        if mine is not None and other is not None and _differ(checkpoint, mine, other)
    )


def untie(model: nn.Module, parameters: Iterable[str]) -> None:
    """Give each of `parameters` a storage of its own; the model is one on the meta device."""
    for name in parameters:
        path, _, leaf = name.rpartition(".")
        shared: Tensor = model.get_parameter(name)
        setattr(model.get_submodule(path), leaf, nn.Parameter(shared.detach().clone()))


def _differ(checkpoint: Checkpoint, first: str, second: str) -> bool:
    one, other = checkpoint.tensors[first], checkpoint.tensors[second]
    if first == second:
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return True
    pairs = zip(_pieces(one), _pieces(other), strict=True)
    return any(mine != theirs for mine, theirs in pairs)


def _pieces(stored: Stored) -> Iterator[bytes]:
    """The bytes of a tensor, a few megabytes at a time."""
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        for start in range(0, stored.bytes, _PIECE):
            yield file.read(min(_PIECE, stored.bytes - start))
