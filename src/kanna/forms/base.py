"""What every form and its module have in common, the table of known forms, and the way to and from JSON."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from kanna.errors import InputError, KannaError

Shape = tuple[int, ...]
Tensors = Mapping[str, torch.Tensor]
Packable = torch.Tensor | Tensors

# The persistent one-element buffer every module of a form carries. It has the name of the dense weight and a
# shape that no dense loader accepts, so that a load without kanna fails instead of giving random weights.
SENTINEL = "weight"

# Forms inside one another; a description that goes deeper is an attack or an accident.
MOST_LEVELS = 16


@dataclasses.dataclass(frozen=True)
class Child:
    """A form inside another, and the size (m, n) of the matrix that it stores."""

    form: Form
    m: int
    n: int


@dataclasses.dataclass(frozen=True)
class Form(ABC):
    """How one (m, n) matrix is stored. Hashable, comparable, and JSON there and back.

    A form speaks of tensors by *suffix*: the name below the module, such as `reduce.weight`. A form of one's
    own says which forms it is made of (fields whose default is a form, `children`), which tensors it has
    beside them (`own_dtypes`, `own`) and how they multiply out (`dense`); the rest follows at any depth.

    Raises:
        InputError: More than MOST_LEVELS forms inside one another.
    """

    key: ClassVar[str]
    module: ClassVar[type[FormModule]]
    # The child whose bias is that of the whole; None where the bias lies beside the children.
    bias_child: ClassVar[str | None] = None
    has_sentinel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.levels > MOST_LEVELS:
            raise InputError(f"more than {MOST_LEVELS} forms inside one another")

    @property
    def nested(self) -> Mapping[str, Form]:
        """The forms directly inside this one, by name."""
        return {name: getattr(self, name) for name in _nested_fields(type(self))}

    @property
    def own_dtypes(self) -> Mapping[str, torch.dtype | None]:
        """Own tensors by name, and their dtype where that is not the dtype of the weights."""
        return {}

    def children(self, m: int, n: int) -> dict[str, Child]:
        """`nested` with the sizes that they have in a form of an (m, n) matrix.

        Raises:
            InputError: The form does not fit an (m, n) matrix.
        """
        return {}

    def own(self, m: int, n: int) -> dict[str, Shape]:
        """Name -> shape of the tensors in `own_dtypes`: all but those of children, sentinel and bias."""
        return {}

    @abstractmethod
    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        """The dense (m, n) weight in `dtype`, in which all products are made.

        Args:
            tensors: Suffix -> tensor, as in `tensors(m, n)`.
        """

    @property
    def levels(self) -> int:
        """How many forms lie inside one another, this one counted."""
        return 1 + max((form.levels for form in self.nested.values()), default=0)

    @property
    def bias_suffix(self) -> str:
        """Where the bias lies."""
        child = self.bias_child
        return "bias" if child is None else f"{child}.{self.nested[child].bias_suffix}"

    @property
    def suffixes(self) -> set[str]:
        """Of all tensors but the bias."""
        below = {f"{name}.{suffix}" for name, form in self.nested.items() for suffix in form.suffixes}
        return below | set(self.own_dtypes) | ({SENTINEL} if self.has_sentinel else set())

    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        """Suffix -> shape of all that a checkpoint holds for a module of this form, the sentinel included.

        Raises:
            InputError: The form does not fit an (m, n) matrix.
        """
        shapes: dict[str, Shape] = {SENTINEL: (1,)} if self.has_sentinel else {}
        for name, child in self.children(m, n).items():
            shapes |= _prefixed(name, child.form.tensors(child.m, child.n))
        return shapes | self.own(m, n) | ({self.bias_suffix: (m,)} if bias else {})

    def parameters(self, m: int, n: int) -> int:
        """Numbers stored for the matrix alone: indices counted, bias and sentinels not."""
        inside = sum(child.form.parameters(child.m, child.n) for child in self.children(m, n).values())
        return inside + sum(math.prod(shape) for shape in self.own(m, n).values())

    def dtype_of(self, suffix: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the tensor `suffix` is stored when weights are stored in `dtype`."""
        for name, form in self.nested.items():
            if suffix.startswith(f"{name}."):
                return form.dtype_of(suffix.removeprefix(f"{name}."), dtype)
        return self.own_dtypes.get(suffix) or dtype

    def bytes(self, m: int, n: int, dtype: torch.dtype, bias: bool = False) -> int:
        """Exact bytes of tensor data in the file, sentinels included."""
        shapes = self.tensors(m, n, bias)
        return sum(math.prod(s) * self.dtype_of(name, dtype).itemsize for name, s in shapes.items())

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Module:
        """An uninitialised module of this form with the names and shapes of `tensors(m, n, bias)`.

        Raises:
            InputError: The form does not fit an (m, n) matrix.
        """
        return self.module(self, m, n, bias, dtype, device)

    def merge(self, tensors: Tensors, m: int, n: int) -> torch.Tensor:
        """The dense (m, n) weight, in the dtype of the stored `weight` (products in float32 or better).

        Args:
            tensors: Suffix -> tensor, as in `tensors(m, n)`.
        """
        dtype = tensors[SENTINEL].dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return self.dense(tensors, m, n, wide).to(dtype)

    def dense_children(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Name -> dense weight of each child in `dtype`; see `dense`."""
        weights = {}
        for name, child in self.children(m, n).items():
            inner = {s.removeprefix(f"{name}."): t for s, t in tensors.items() if s.startswith(f"{name}.")}
            weights[name] = child.form.dense(inner, child.m, child.n, dtype)
        return weights

    def pack(
        self,
        parts: Mapping[str, Packable],
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, torch.Tensor]:
        """Suffix -> tensor to store, the sentinel included.

        Args:
            parts: The name of each child -> what `pack` of its form gave without a bias, or simply the weight
                where that form is dense; and the name of each own tensor -> that tensor.
            bias: (m,) or None.
            dtype: Of the sentinel, which is that of the model; None takes that of what is stored in it.

        Raises:
            KannaError: Nothing tells the dtype; a name is missing or unknown, here or in what a child's form
                gave.
        """
        _check_names(self, {*self.nested, *self.own_dtypes}, parts)
        tensors: dict[str, torch.Tensor] = {}
        for name, form in self.nested.items():
            tensors |= _prefixed(name, _packed(form, name, parts[name]))
        for name, fixed in self.own_dtypes.items():
            tensor = parts[name]
            if not isinstance(tensor, torch.Tensor):
                raise KannaError(f"{name!r} of a {self.key} form must be a tensor")
            tensors[name] = tensor if fixed is None else tensor.to(fixed)
        if self.has_sentinel:
            like = next(iter(tensors.values()))
            follow = (t.dtype for s, t in tensors.items() if t.is_floating_point() and self._follows(s))
            told = dtype or next(follow, None)
            if told is None:
                raise KannaError(f"nothing that a {self.key} form is packed from tells the model's dtype")
            tensors[SENTINEL] = torch.zeros(1, dtype=told, device=like.device)
        return tensors | ({} if bias is None else {self.bias_suffix: bias})

    def _follows(self, suffix: str) -> bool:
        """Whether a tensor is stored in the dtype of the model, whatever that is."""
        return self.dtype_of(suffix, torch.float64) == torch.float64

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a nested form that is the default is left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        nested = _nested_fields(type(self))
        written = {
            name: values[name].to_json() if name in nested else values[name]
            for name in values
            if values[name] != nested.get(name, dataclasses.MISSING)
        }
        return {"form": self.key, **written}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Form:
        """The form from its JSON object without the "form" key; unknown and missing keys are refused."""
        _check_keys(cls, fields)
        nested = _nested_fields(cls)
        return cls(**{name: from_json(v) if name in nested else v for name, v in fields.items()})


_Value = TypeVar("_Value")
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
        InputError: Not an object, an unknown form, an unknown or missing key, a bad value, or more than
            MOST_LEVELS forms inside one another.
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
    try:
        return cls.from_fields({name: value for name, value in data.items() if name != "form"})
    except RecursionError as error:
        raise InputError(f"more than {MOST_LEVELS} forms inside one another") from error


def positive(form: str, name: str, value: object) -> None:
    """Raise InputError unless `value` is a whole number of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} of a {form} form must be a whole number of at least 1, found {value!r}")


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
        tensors = dict(module.state_dict(keep_vars=True))
        return module.form.merge(tensors, module.out_features, module.in_features)
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


def _nested_fields(cls: type[Form]) -> dict[str, Form]:
    """The fields that hold nested forms, with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, Form)}


def _prefixed(name: str, values: Mapping[str, _Value]) -> dict[str, _Value]:
    return {f"{name}.{suffix}": value for suffix, value in values.items()}


def _packed(form: Form, name: str, part: Packable) -> Tensors:
    """What is stored of a child: a lone tensor is the weight of a form that needs nothing but `weight`."""
    if not isinstance(part, torch.Tensor):
        _check_names(form, form.suffixes, part)
        return part
    if form.suffixes != {SENTINEL}:
        raise KannaError(f"{name!r} must be what `pack` of its {form.key} form gave, and is a tensor")
    return {SENTINEL: part}


def _check_names(form: Form, expected: Collection[str], given: Mapping[str, object]) -> None:
    unknown, missing = sorted(set(given) - set(expected)), sorted(set(expected) - set(given))
    if unknown or missing:
        raise KannaError(
            f"a {form.key} form is packed from {sorted(expected)}; unknown: {unknown}, missing: {missing}"
        )


def _check_keys(cls: type[Form], fields: Mapping[str, Any]) -> None:
    expected = {f.name for f in dataclasses.fields(cls)}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    unknown, missing = sorted(set(fields) - expected), sorted(required - set(fields))
    if unknown or missing:
        raise InputError(
            f"a {cls.key} form has the keys {sorted(expected)}; unknown: {unknown}, missing: {missing}",
            "upgrade kanna if a newer version wrote this checkpoint",
        )


@register("dense")
@dataclasses.dataclass(frozen=True)
class Dense(Form):
    """An ordinary nn.Linear; no sentinel, since its weight has the shape that the name promises."""

    has_sentinel: ClassVar[bool] = False

    @property
    def own_dtypes(self) -> Mapping[str, torch.dtype | None]:
        return {"weight": None}

    def own(self, m: int, n: int) -> dict[str, Shape]:
        return {"weight": (m, n)}

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Linear:
        return nn.Linear(n, m, bias=bias, dtype=dtype, device=device)

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        return tensors["weight"].to(dtype)


# The default of nested forms.
DENSE = Dense()
