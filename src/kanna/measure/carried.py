"""What a model returns for the next token to go on from: keys and values, or the state of a recurrence."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kanna.errors import InputError

_CHOOSE = "bench measures models that decode one token after another"
# Names under which models of transformers return it, and take it again.
_NAMES = ("past_key_values", "cache_params", "state")


def carried(out: Any) -> dict[str, Any]:
    """By the name under which the model takes it; empty where it returns nothing of the kind."""
    found = {name: getattr(out, name, None) for name in _NAMES}
    return next(({name: value} for name, value in found.items() if value is not None), {})


def bytes_held(value: object) -> int:
    """Of all numbers in a cache, whatever it is made of: windows and latent vectors as they are kept."""
    tensors: dict[int, Tensor] = {}
    _collect(value, tensors, set())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _collect(value: object, tensors: dict[int, Tensor], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.is_floating_point():  # the others count tokens
            tensors[id(value)] = value
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        _collect(part, tensors, seen)


def check_decodes(model: Any, name: str, batch: int, device: torch.device | str = "cpu") -> None:
    """Raise InputError for a model that cannot read one token after another: its decoding has no time."""
    ids = torch.zeros((batch, 2), dtype=torch.int64, device=device)
    try:
        with torch.no_grad():
            kept = carried(model(input_ids=ids, use_cache=True))
            if kept:
                model(input_ids=ids[:, :1], use_cache=True, **kept)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(f"{name} cannot go on from what it has read: {words}", _CHOOSE) from error
    if not kept:
        raise InputError(f"{name} returns neither keys and values nor a state to go on from", _CHOOSE)
