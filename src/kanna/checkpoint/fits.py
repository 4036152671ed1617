"""Whether the tensors in the files are those that a configuration describes."""

from collections.abc import Collection

from torch import nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.names import tensor_name


def check_shapes(checkpoint: Checkpoint, model: nn.Module, leave_out: Collection[str] = ()) -> None:
    """Compare the shape of every parameter of `model` (on the meta device) with the headers.

    Args:
        leave_out: Full names of parameters that the files may hold in another way.

    Raises:
        InputError: A tensor of another shape; it is named. Tensors that are absent are not looked at.
    """
    prefix = str(getattr(model, "base_model_prefix", ""))
    for parameter, expected in model.named_parameters():
        name = tensor_name(parameter, checkpoint.tensors, prefix)
        if name is None or parameter in leave_out:
            continue
        if checkpoint.shape(name) != tuple(expected.shape):
            raise InputError(
                f"{name!r} in {checkpoint.tensors[name].file} has shape {list(checkpoint.shape(name))}; "
                f"config.json asks for {list(expected.shape)}",
                "configuration and weights do not belong together: fetch the model again",
            )
