"""What a walk through blocks, in the original and in the compressed model, leaves on disk as it goes.

block-000.safetensors      what is new in a finished block; forms and more in its note
probe-000.safetensors      hidden states of the first window behind a run of a block
original-000, compressed-000    hidden states before the block at hand, in both
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from kanna.calibration.side_by_side import Sides
from kanna.calibration.walker import Walker
from kanna.forms import from_json
from kanna.models.matrix import Matrix
from kanna.runs.assemble import Piece, install_piece, whole_shape
from kanna.runs.workspace import Stream, Workspace

SIDES = ("original", "compressed")


def block_file(layer: int) -> str:
    return f"block-{layer:03d}.safetensors"


def probe_file(visit: int) -> str:
    return f"probe-{visit:03d}.safetensors"


def streams(workspace: Workspace) -> list[Callable[[int], Stream]]:
    """Of both sides: block -> the file of hidden states before it."""
    return [partial(_stream, workspace, side) for side in SIDES]


def first_open(workspace: Workspace, count: int) -> int:
    """The first block without a sound file, or the last one before it whose hidden states are still there."""
    open_ = next((layer for layer in range(count) if not workspace.has(block_file(layer))), count)
    if open_ == count:
        return count
    there = [layer for layer in range(open_ + 1) if all(at(layer).exists() for at in streams(workspace))]
    return max(there, default=0)


def restore(
    workspace: Workspace, sides: Sides, matrices: Sequence[Matrix], walker: Walker
) -> Mapping[str, Tensor]:
    """Put the modules into a block that an earlier run wrote of it; what else it wrote is given back.

    Args:
        matrices: Of the whole model.
    """
    name = block_file(sides.layer)
    sides.forms, sides.tensors = workspace.note(name)["forms"], workspace.load(name)
    rest = dict(sides.tensors)
    for module, data in sides.forms.items():
        parts = [matrix for matrix in matrices if matrix.module == module]
        own = {key: rest.pop(key) for key in list(rest) if key.startswith(f"{module}.")}
        tensors = {key.removeprefix(f"{module}."): value for key, value in own.items()}
        piece = Piece(module, from_json(data), tensors, whole_shape(parts))
        install_piece(sides.compressed, sides.path, piece, walker.dtype, walker.device)
    return rest


def _stream(workspace: Workspace, side: str, layer: int) -> Stream:
    return Stream(workspace.directory / f"{side}-{layer:03d}.safetensors")
