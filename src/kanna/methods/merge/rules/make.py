"""The operation of a method on one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from kanna.errors import InputError
from kanna.methods.merge.known import SPREAD
from kanna.methods.merge.resolve import Values
from kanna.methods.merge.rules.differences import Pruned, TaskArithmetic
from kanna.methods.merge.rules.directions import Directions
from kanna.methods.merge.rules.fast.available import SWITCH
from kanna.methods.merge.rules.fusion import Fusion
from kanna.methods.merge.rules.linear import Linear
from kanna.methods.merge.rules.lines import ModelStockLines, SphericalLines
from kanna.methods.merge.rules.nearness import NearSwap
from kanna.methods.merge.rules.operation import Operation
from kanna.methods.merge.rules.passing import Passthrough
from kanna.methods.merge.rules.pruning import Pruner, dropped, ranked, trimmed
from kanna.methods.merge.rules.reinforced import Ram
from kanna.methods.merge.rules.spectral import Combine, Spectral, calibrated, isotropic, task_vectors
from kanna.methods.merge.rules.spherical import NUSLERP_PARALLEL, SLERP_PARALLEL, Spherical
from kanna.methods.merge.rules.stitching import Stitched
from kanna.methods.merge.rules.stock import ModelStock
from kanna.methods.merge.rules.variance import Sce


@dataclass(frozen=True)
class Subject:
    """A tensor, as an operation needs to know it.

    Args:
        name: For messages.
        count: Of its values.
        dtype: In which it is computed.
        models: How many tensors there are.
        base: Index of the base model; -1 without one.
        values: What the recipe says for it.
        row: Values of a row; those of a tensor with one axis are one row.
        seed: Of what is drawn by chance.
        pruners: What stays of each, where that was found over the whole model; None where it is found in the
            tensor.
        fast: Whether loops are compiled, where they are of float32; the result is the same.
    """

    name: str
    count: int
    dtype: torch.dtype
    models: int
    base: int
    values: Values
    row: int
    seed: int = 0
    pruners: Sequence[Pruner | None] | None = None
    fast: bool = False

    @property
    def keys(self) -> list[str]:
        """Of the generators of each model, which is known by its place: two directories may have one name."""
        return [f"{self.seed}\n{place}\n{self.name}" for place in range(self.models)]


def whole_rows(method: str, values: Values) -> bool:
    """Whether the operation takes chunks of whole rows only."""
    return method in _BY_ROWS and _BY_ROWS[method](values)


def whole_tensors(method: str) -> bool:
    """Whether the operation takes a tensor as one chunk."""
    return method in _WHOLE


def operation(method: str, subject: Subject) -> Operation:
    """A new operation, for one tensor."""
    return _MAKERS[method](subject)


Kind = TypeVar("Kind", bound=Operation)


def _kind(plain: type[Kind], subject: Subject) -> type[Kind]:
    """The class of an operation, or that of the same one with compiled loops.

    Raises:
        InputError: numba is installed, and does not work.
    """
    if not subject.fast or subject.dtype != torch.float32:
        return plain
    try:
        from kanna.methods.merge.rules.fast.operations import FASTER
    except ImportError as error:
        raise InputError(
            f"numba cannot be imported: {error}", f"install another version, or set {SWITCH}=off"
        ) from error
    return FASTER[plain]


def _linear(subject: Subject) -> Operation:
    values = subject.values
    return _kind(Linear, subject)(values.each("weight"), bool(values.one("normalize")))


def _task_arithmetic(subject: Subject) -> Operation:
    values = subject.values
    return _kind(TaskArithmetic, subject)(
        subject.base, values.each("weight"), bool(values.one("normalize")), values.one("lambda")
    )


def _ties(subject: Subject) -> Operation:
    if subject.pruners is not None:
        return _pruned(subject, subject.pruners, True)
    densities, match = subject.values.each("density"), bool(subject.values.one("rescale"))
    pruners = [trimmed(one, 0.0, subject.count, subject.dtype, match) for one in densities]
    return _pruned(subject, pruners, True)


def _breadcrumbs(subject: Subject, elect: bool) -> Operation:
    if subject.pruners is not None:
        return _pruned(subject, subject.pruners, elect)
    values = subject.values
    shares = zip(values.each("density"), values.each("gamma"), strict=True)
    match = bool(values.one("rescale"))
    pruners = [trimmed(*one, subject.count, subject.dtype, match) for one in shares]
    return _pruned(subject, pruners, elect)


def _dare(subject: Subject, elect: bool) -> Operation:
    rescale, densities = subject.values.one("rescale"), subject.values.each("density")
    pruners = [
        dropped(one, subject.count, rescale, key) for one, key in zip(densities, subject.keys, strict=True)
    ]
    return _pruned(subject, pruners, elect)


def _della(subject: Subject, elect: bool) -> Operation:
    values, rescale = subject.values, subject.values.one("rescale")
    given = zip(values.each("density"), values.each(SPREAD), subject.keys, strict=True)
    pruners = [
        ranked(density, spread, subject.row, subject.count, rescale, key) for density, spread, key in given
    ]
    return _pruned(subject, pruners, elect)


def _pruned(subject: Subject, pruners: Sequence[Pruner | None], elect: bool) -> Operation:
    values = subject.values
    return _kind(Pruned, subject)(
        subject.name,
        subject.base,
        values.each("weight"),
        pruners,
        subject.count,
        elect,
        bool(values.one("normalize")),
        values.one("lambda"),
    )


def _passthrough(subject: Subject) -> Operation:
    return Passthrough(*subject.values.each("scale"))


def _slerp(subject: Subject) -> Operation:
    return Spherical(subject.base, 1 - subject.base, -1, subject.values.one("t"), SLERP_PARALLEL)


def _nuslerp(subject: Subject) -> Operation:
    first, second = (index for index in range(subject.models) if index != subject.base)
    weights = subject.values.each("weight")
    t = weights[second] / (weights[first] + weights[second])
    if subject.values.one("nuslerp_flatten"):
        return Spherical(first, second, subject.base, t, NUSLERP_PARALLEL)
    columns = subject.row < subject.count and bool(subject.values.one("nuslerp_row_wise"))
    return SphericalLines(first, second, subject.base, t, NUSLERP_PARALLEL, subject.row, columns)


def _model_stock(subject: Subject) -> Operation:
    if subject.values.one("filter_wise"):
        return ModelStockLines(subject.base, subject.models, subject.row)
    return ModelStock(subject.base, subject.models)


def _arcee_fusion(subject: Subject) -> Operation:
    (other,) = (index for index in range(subject.models) if index != subject.base)
    return Fusion(subject.base, other, subject.row, subject.count, subject.dtype)


def _nearswap(subject: Subject) -> Operation:
    return NearSwap(subject.base, subject.values.one("t"))


def _multislerp(subject: Subject) -> Operation:
    models = [index for index in range(subject.models) if index != subject.base]
    weights = [subject.values.each("weight")[index] for index in models]
    total = math.fsum(weights) if subject.values.one("normalize_weights") else 1.0
    return Directions(subject.name, models, subject.base, [weight / total for weight in weights])


def _karcher(subject: Subject) -> Operation:
    steps, tolerance = int(subject.values.one("max_iter")), subject.values.one("tol")
    weights = [1 / subject.models] * subject.models
    return Directions(subject.name, range(subject.models), -1, weights, steps, tolerance)


def _sce(subject: Subject) -> Operation:
    share = subject.values.one("select_topk")
    if share == 0:
        return TaskArithmetic(subject.base, [0.0] * subject.models, False, 1.0)
    return Sce(subject.base, subject.models, subject.count, share, 1.0, subject.dtype)


def _ram(subject: Subject) -> Operation:
    return Ram(subject.base, subject.models, subject.values.one("epsilon"))


def _ramplus(subject: Subject) -> Operation:
    epsilon, gain, most = map(subject.values.one, ("epsilon", "r", "alpha"))
    return Ram(subject.base, subject.models, epsilon, gain, most)


def _spectral(subject: Subject, combine: Combine) -> Operation:
    weights, scale = subject.values.each("weight"), subject.values.one("lambda")
    return Spectral(subject.base, weights, subject.row, scale, combine)


def _svc(subject: Subject) -> Operation:
    return _spectral(subject, partial(calibrated, alpha=subject.values.one("alpha")))


def _stitched(subject: Subject) -> Operation:
    pruners = [
        trimmed(density, 0.0, subject.count, subject.dtype) for density in subject.values.each("density")
    ]
    return Stitched(subject.base, pruners, subject.count, subject.values.one("lambda"))


_MAKERS: Mapping[str, Callable[[Subject], Operation]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": partial(_dare, elect=False),
    "dare_ties": partial(_dare, elect=True),
    "breadcrumbs": partial(_breadcrumbs, elect=False),
    "breadcrumbs_ties": partial(_breadcrumbs, elect=True),
    "della": partial(_della, elect=True),
    "della_linear": partial(_della, elect=False),
    "passthrough": _passthrough,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "model_stock": _model_stock,
    "arcee_fusion": _arcee_fusion,
    "nearswap": _nearswap,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "sce": _sce,
    "ram": _ram,
    "ramplus_tl": _ramplus,
    "tsv_m": partial(_spectral, combine=task_vectors),
    "iso_c": partial(_spectral, combine=isotropic),
    "svc": _svc,
    "localize_and_stitch": _stitched,
}

_BY_ROWS: Mapping[str, Callable[[Values], bool]] = {
    "della": lambda values: True,
    "della_linear": lambda values: True,
    "arcee_fusion": lambda values: True,
    "nuslerp": lambda values: not values.one("nuslerp_flatten"),
    "model_stock": lambda values: bool(values.one("filter_wise")),
}
_WHOLE = ("tsv_m", "iso_c", "svc")
