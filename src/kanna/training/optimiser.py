"""AdamW whose parameters may shrink between steps, and its state as tensors with names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Group:
    """Parameters that share a rate.

    Args:
        parameters: By name; the names are those of the state's file.
        rate: Largest learning rate.
        decay: Weight decay.
    """

    parameters: Mapping[str, nn.Parameter]
    rate: float
    decay: float = 0.0


class Optimiser:
    """AdamW over named groups of parameters.

    Args:
        groups: A parameter is in one of them.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(group for group in groups if group.parameters)
        given = [
            {"params": list(group.parameters.values()), "lr": group.rate, "weight_decay": group.decay}
            for group in self.groups
        ]
        self._adam = torch.optim.AdamW(given, betas=BETAS)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, by name."""
        return {name: p for group in self.groups for name, p in group.parameters.items()}

    def step(self, share: float, clip: float | None) -> None:
        """One step at a share of the rates; gradients are clipped to a norm first, and dropped afterwards."""
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        for given, group in zip(self._adam.param_groups, self.groups, strict=True):
            given["lr"] = group.rate * share
        self._adam.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def cut(self, name: str, kept: Tensor, dim: int = 0) -> None:
        """Keep these places of a parameter along a dimension, and the same of what was averaged of it."""
        parameter = self.parameters[name]
        places = kept.to(parameter.device)
        _put(parameter, parameter.data.index_select(dim, places).contiguous())
        state = self._adam.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                state[moment] = state[moment].index_select(dim, places).contiguous()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and averages by `name`, `name:exp_avg`, ..., and `name:step`."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            found[name] = parameter.data
            state = self._adam.state.get(parameter, {})
            found |= {f"{name}:{moment}": state[moment] for moment in (*_MOMENTS, "step") if moment in state}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, in whatever shapes it was."""
        for name, parameter in self.parameters.items():
            _put(parameter, tensors[name].to(parameter.device, parameter.dtype))
            moments = {
                moment: tensors[f"{name}:{moment}"].to(parameter.device if moment != "step" else "cpu")
                for moment in (*_MOMENTS, "step")
                if f"{name}:{moment}" in tensors
            }
            if moments:
                self._adam.state[parameter] = moments
            else:
                self._adam.state.pop(parameter, None)


def _put(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter a value of any shape.

    A model that keeps a state of its last call keeps the graph of that, and with it the shape that gradients
    of the parameter had; PyTorch forgets it where the type changes.
    """
    dtype = parameter.dtype
    parameter.grad = None
    parameter.data = parameter.data.to(torch.float64 if dtype != torch.float64 else torch.float32)
    parameter.data = value.to(dtype)
