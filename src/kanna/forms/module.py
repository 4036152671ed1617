"""The modules of forms, and what one does with any of them."""

from __future__ import annotations

import torch
from torch import nn

from kanna.forms.base import SENTINEL, Form


class FormModule(nn.Module):
    """A linear layer in another form: y (..., m) from x (..., n), like the nn.Linear that it replaces.

    It holds the modules of the form's children under their names, the form's own tensors as buffers, and the
    bias where no child holds it; all uninitialised.

    Args:
        form: The form that builds the module.
        m: Outputs.
        n: Inputs.
        bias: Whether to add one.
        dtype: Of the floating tensors; None is torch's default.
        device: None is torch's default.
    """

    weight: torch.Tensor

    def __init__(
        self,
        form: Form,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.form, self.in_features, self.out_features = form, n, m
        self.register_buffer(SENTINEL, torch.zeros(1, dtype=dtype, device=device))
        for name, child in form.children(m, n).items():
            inner_bias = bias and name == form.bias_child
            _attach(self, name, child.form.build(child.m, child.n, inner_bias, dtype, device))
        for name, shape in form.own(m, n).items():
            stored = form.own_dtypes[name] or dtype
            self.register_buffer(name, torch.zeros(shape, dtype=stored, device=device))
        if form.bias_child is None:
            zeros = torch.zeros(m, dtype=dtype, device=device) if bias else None
            self.bias = None if zeros is None else nn.Parameter(zeros)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, form={self.form}"


def dense_weight(module: nn.Module) -> torch.Tensor:
    """The dense (m, n) weight of a module of a form, or of an ordinary nn.Linear."""
    if isinstance(module, FormModule):
        return module.form.merge(dict(module.state_dict(keep_vars=True)))
    if isinstance(module, nn.Linear):
        return module.weight
    raise TypeError(f"a module of a form or nn.Linear was expected, found {type(module).__name__}")


def install(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of `root` at the dotted `path`."""
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` a child of `root`, or of the list of modules that its dotted name begins with."""
    parent, _, leaf = name.rpartition(".")
    if parent and not hasattr(root, parent):
        root.add_module(parent, nn.ModuleList())
    root.get_submodule(parent).add_module(leaf, module)
