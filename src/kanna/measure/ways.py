"""How a model makes its products with whole numbers: by a kernel, or with weights multiplied out."""

from typing import Any

from torch import Tensor, nn

from kanna.forms import FormModule, IntLinear
from kanna.forms.base import SENTINEL
from kanna.measure.latency import request
from kanna.measure.results import Integers, Ways


def integers_of(model: nn.Module, ids: Tensor) -> Integers | None:
    """Ways of a request of a prompt (batch, tokens) and one further token; None without whole numbers."""
    layers = [module for module in model.modules() if isinstance(module, IntLinear)]
    if not layers:
        return None
    calls: list[list[bool]] = []  # of the model; in each, whether a product was the kernel's

    def begins(*_: Any) -> None:
        calls.append([])

    def multiplies(layer: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(layer, IntLinear)
        calls[-1].append(layer.kernel(given[0]) is not None)

    hooks = [model.register_forward_pre_hook(begins)]
    hooks += [layer.register_forward_pre_hook(multiplies) for layer in layers]
    try:
        request(model, ids, 2)
    finally:
        for hook in hooks:
            hook.remove()
    prefill, decode = map(_counted, calls)
    return Integers(prefill=prefill, decode=decode)


def _counted(kernels: list[bool]) -> Ways:
    return Ways(kernel=sum(kernels), multiplied_out=len(kernels) - sum(kernels))


def bytes_of_forms(model: nn.Module) -> int:
    """What layers in forms read beside parameters: whole numbers with their scales, orders of rows."""
    held: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, FormModule):
            held |= {id(t): t for name, t in module.named_buffers(recurse=False) if name != SENTINEL}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())
