"""Where and in what numbers to compute, as the user names them."""

from typing import get_args

import torch

from kanna.configuration import DType
from kanna.errors import InputError
from kanna.models.device_names import check_device_name

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DType)}


def device_of(name: str) -> torch.device:
    """The device `name`, which exists on this machine.

    Raises:
        InputError: It is no name of a device, or nothing can be computed there.
    """
    check_device_name(name)
    try:
        device = torch.device(name)
        torch.ones((), device=device).item()  # "meta" has tensors, but nothing in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {first}", "choose --device cpu") from error
    return device


def dtype_of(name: str) -> torch.dtype:
    """The floating dtype `name`.

    Raises:
        InputError: It is none of those that models are computed in.
    """
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is unknown", f"choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
