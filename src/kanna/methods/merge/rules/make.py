"""The operation of a method on one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kanna.methods.merge.resolve import Values
from kanna.methods.merge.rules.differences import Pruned, TaskArithmetic
from kanna.methods.merge.rules.directions import Directions
from kanna.methods.merge.rules.linear import Linear
from kanna.methods.merge.rules.nearness import NearSwap
from kanna.methods.merge.rules.operation import Operation
from kanna.methods.merge.rules.passing import Passthrough
from kanna.methods.merge.rules.pruning import Pruner, dropped, trimmed
from kanna.methods.merge.rules.reinforced import Ram
from kanna.methods.merge.rules.spherical import NUSLERP_PARALLEL, SLERP_PARALLEL, Spherical
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
        seed: Of what is drawn by chance.
    """

    name: str
    count: int
    dtype: torch.dtype
    models: int
    base: int
    values: Values
    seed: int = 0


def operation(method: str, subject: Subject) -> Operation:
    """A new operation, for one tensor."""
    return _MAKERS[method](subject)


def _linear(subject: Subject) -> Operation:
    values = subject.values
    return Linear(values.each("weight"), bool(values.one("normalize")))


def _task_arithmetic(subject: Subject) -> Operation:
    values = subject.values
    return TaskArithmetic(
        subject.base, values.each("weight"), bool(values.one("normalize")), values.one("lambda")
    )


def _ties(subject: Subject) -> Operation:
    densities = subject.values.each("density")
    return _pruned(subject, [trimmed(one, 0.0, subject.count, subject.dtype) for one in densities], True)


def _breadcrumbs(subject: Subject, elect: bool) -> Operation:
    values = subject.values
    shares = zip(values.each("density"), values.each("gamma"), strict=True)
    return _pruned(subject, [trimmed(*one, subject.count, subject.dtype) for one in shares], elect)


def _dare(subject: Subject, elect: bool) -> Operation:
    rescale = bool(subject.values.one("rescale"))
    # A model is known by its place: two directories may have one name.
    keys = [f"{subject.seed}\n{place}\n{subject.name}" for place in range(subject.models)]
    densities = subject.values.each("density")
    pruners = [dropped(one, subject.count, rescale, key) for one, key in zip(densities, keys, strict=True)]
    return _pruned(subject, pruners, elect)


def _pruned(subject: Subject, pruners: Sequence[Pruner | None], elect: bool) -> Operation:
    values = subject.values
    return Pruned(
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
    total = weights[first] + weights[second]
    return Spherical(first, second, subject.base, weights[second] / total, NUSLERP_PARALLEL)


def _model_stock(subject: Subject) -> Operation:
    return ModelStock(subject.base, subject.models)


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
    share, scale = subject.values.one("select_topk"), subject.values.one("lambda")
    if share == 0:
        return TaskArithmetic(subject.base, [0.0] * subject.models, False, scale)
    return Sce(subject.base, subject.models, subject.count, share, scale, subject.dtype)


def _ram(subject: Subject) -> Operation:
    return Ram(subject.base, subject.models, subject.values.one("epsilon"))


def _ramplus(subject: Subject) -> Operation:
    epsilon, gain, most = map(subject.values.one, ("epsilon", "r", "alpha"))
    return Ram(subject.base, subject.models, epsilon, gain, most)


_MAKERS: Mapping[str, Callable[[Subject], Operation]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": partial(_dare, elect=False),
    "dare_ties": partial(_dare, elect=True),
    "breadcrumbs": partial(_breadcrumbs, elect=False),
    "breadcrumbs_ties": partial(_breadcrumbs, elect=True),
    "passthrough": _passthrough,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "model_stock": _model_stock,
    "nearswap": _nearswap,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "sce": _sce,
    "ram": _ram,
    "ramplus_tl": _ramplus,
}
