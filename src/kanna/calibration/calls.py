"""How a model and its blocks are called, and what lies in what they are given and return."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """How the model calls one block for one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module) -> Any:
        """What the block returns."""
        return block(*self.args, **self.kwargs)

    def on(self, hidden: Tensor) -> "Call":
        """The same with other hidden states."""
        return Call((hidden, *self.args[1:]), self.kwargs)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a tree of tuples, lists and mappings, in order; of an empty one nothing."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def states_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: its first tensor.

    Raises:
        TypeError: There is none.
    """
    found = next((leaf for leaf in leaves(output) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise TypeError(f"a block returned {type(output).__name__} without a tensor")
    return found


def with_states(output: Any, hidden: Tensor) -> Any:
    """What a block returns, with other hidden states in it."""
    if isinstance(output, Tensor):
        return hidden
    if not isinstance(output, tuple | list):
        raise TypeError(f"a block returned {type(output).__name__}")
    place = next(i for i, item in enumerate(output) if any(isinstance(leaf, Tensor) for leaf in leaves(item)))
    return type(output)(with_states(item, hidden) if i == place else item for i, item in enumerate(output))


def hollow(output: Any) -> Any:
    """What a block returns with nothing but the place of its hidden states: for `with_states`, later."""
    first = states_of(output)

    def emptied(value: Any) -> Any:
        if value is first:
            return first.new_empty(0)
        if isinstance(value, tuple | list):
            return type(value)(map(emptied, value))
        return None if isinstance(value, Tensor) else value

    return emptied(output)


def body_call(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None = None,
    written: Tensor | None = None,
    more: Mapping[str, Any] | None = None,
) -> Any:
    """Call a model, or its body without a head, on tokens; nothing is cached.

    Args:
        mask: (b, length) bool, False on padding; None where there is none.
        written: (b, other length) tokens that a decoder apart has written; None without such a decoder.
        more: Further arguments.
    """
    given: dict[str, Any] = dict(more or {})
    given |= {} if mask is None else {"attention_mask": mask.long().to(ids.device)}
    if written is not None:
        given["decoder_input_ids"] = written
    parameters = inspect.signature(model.forward).parameters
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if others or "use_cache" in parameters:
        given["use_cache"] = False
    return model(ids, **given)


def body(model: nn.Module) -> nn.Module:
    """The model without its head."""
    base: nn.Module = getattr(model, "base_model", model)
    return base


def ended(config: Any, ids: Tensor) -> Tensor:
    """Ids with one end of the text, at their end: heads on decoders look for it."""
    end = getattr(config, "eos_token_id", None)
    if not isinstance(end, int):
        return ids
    other = next(token for token in range(config.vocab_size) if token not in (end, config.pad_token_id))
    found = torch.where(ids == end, other, ids)
    found[:, -1] = end
    return found
