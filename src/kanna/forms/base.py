"""What every form has in common, the table of known forms, and the way to and from JSON."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from kanna.errors import InputError

Shape = tuple[int, ...]
Tensors = Mapping[str, torch.Tensor]

# The persistent one-element buffer every module of a form carries. It has the name of the dense weight and a
# shape that no dense loader accepts, so that a load without kanna fails instead of giving random weights.
SENTINEL = "weight"


class FormModule(nn.Module):
    """A linear layer in another form: y (..., m) from x (..., n), like the nn.Linear that it replaces.

    Args:
        form: The form that built the module.
        in_features: n.
        out_features: m.
        dtype: Of the floating tensors; None is torch's default.
        device: None is torch's default.
    """

    weight: torch.Tensor

    def __init__(
        self,
        form: Form,
        in_features: int,
        out_features: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer(SENTINEL, torch.zeros(1, dtype=dtype, device=device))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, form={self.form}"


@dataclasses.dataclass(frozen=True)
class Form(ABC):
    """How one (m, n) matrix is stored. Hashable, comparable, and JSON there and back.

    A form speaks of tensors by *suffix*: the name below the module, such as `reduce.weight`.
    """

    key: ClassVar[str]
    bias_suffix: ClassVar[str] = "bias"

    @abstractmethod
    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        """Suffix -> shape of all that a checkpoint holds for a module of this form, the sentinel included.

        Raises:
            InputError: The form does not fit an (m, n) matrix.
        """

    @abstractmethod
    def parameters(self, m: int, n: int) -> int:
        """Numbers stored for the matrix alone: indices counted, bias and sentinel not."""

    @abstractmethod
    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Module:
        """An uninitialised module of this form with the names and shapes of `tensors(m, n, bias)`."""

    @abstractmethod
    def merge(self, tensors: Tensors) -> torch.Tensor:
        """The dense (m, n) weight, in the dtype of the stored tensors (products in float32 or better).

        Args:
            tensors: Suffix -> tensor, as in `tensors(m, n)`.
        """

    def dtype_of(self, suffix: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the tensor `suffix` is stored when weights are stored in `dtype`."""
        return dtype

    def bytes(self, m: int, n: int, dtype: torch.dtype, bias: bool = False) -> int:
        """Exact bytes of tensor data in the file, sentinel included."""
        shapes = self.tensors(m, n, bias)
        return sum(math.prod(s) * self.dtype_of(name, dtype).itemsize for name, s in shapes.items())

    def to_json(self) -> dict[str, Any]:
        return {"form": self.key, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Form:
        """The form from its JSON object without the "form" key; unknown and missing keys are refused."""
        _check_keys(cls, fields)
        return cls(**fields)


_FormType = TypeVar("_FormType", bound=type[Form])
_KNOWN: dict[str, type[Form]] = {}


def register(key: str) -> Callable[[_FormType], _FormType]:
    """Class decorator: make a form known under `key` in JSON. Only registered forms are ever built."""

    def add(cls: _FormType) -> _FormType:
        cls.key = key
        _KNOWN[key] = cls
        return cls

    return add


def from_json(data: object) -> Form:
    """The form described by a JSON object such as {"form": "low_rank", "rank": 8}.

    Raises:
        InputError: Not an object, an unknown form, an unknown or missing key, or a bad value.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"a form must be a JSON object with a key 'form', found {data!r}")
    key = data.get("form")
    cls = _KNOWN.get(key) if isinstance(key, str) else None
    if cls is None:
        known = ", ".join(sorted(_KNOWN))
        raise InputError(
            f"unknown form {key!r}; this version of kanna knows {known}",
            "upgrade kanna if a newer version wrote this checkpoint",
        )
    return cls.from_fields({name: value for name, value in data.items() if name != "form"})


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


def positive(form: str, name: str, value: object) -> None:
    """Raise InputError unless `value` is a whole number of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} of a {form} form must be a whole number of at least 1, found {value!r}")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which factors stored as `dtype` are multiplied out."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right, computed in float32 or better, returned in the dtype of `right`."""
    work = wide(right.dtype)
    return (left.to(work) @ right.to(work)).to(right.dtype)


def sentinel(like: torch.Tensor) -> torch.Tensor:
    """The one-element tensor to store beside `like`."""
    return torch.zeros(1, dtype=like.dtype, device=like.device)


def _check_keys(cls: type[Form], fields: Mapping[str, Any]) -> None:
    expected = {f.name for f in dataclasses.fields(cls)}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    unknown, missing = sorted(set(fields) - expected), sorted(required - set(fields))
    if unknown or missing:
        raise InputError(
            f"a {cls.key} form has the keys {sorted(expected)}; unknown: {unknown}, missing: {missing}",
            "upgrade kanna if a newer version wrote this checkpoint",
        )
