"""Modules that stand in for transformer blocks while a model runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kanna.forms import install


class Reached(Exception):
    """Raised by a hook where a model's run may end."""


class Stub(nn.Module):
    """Stands in for a block: hands the hidden states on.

    Args:
        block: Whose plain attributes, such as `attention_type`, the model may ask for.
        as_tuple: Whether the model takes the first element of what a block returns.
    """

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        plain = (str, int, float, bool)
        self.__dict__.update(
            {k: v for k, v in vars(block).items() if isinstance(v, plain) and k != "training"}
        )

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = self.output(hidden, args, kwargs)
        return (states,) if self.as_tuple else states

    def output(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states after the block."""
        return hidden


@contextmanager
def replaced(model: nn.Module, paths: Sequence[str], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the submodules at `paths` are `modules`."""
    originals = [model.get_submodule(path) for path in paths]
    try:
        for path, module in zip(paths, modules, strict=True):
            install(model, path, module)
        yield
    finally:
        for path, original in zip(paths, originals, strict=True):
            install(model, path, original)
