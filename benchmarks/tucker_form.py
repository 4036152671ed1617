"""Tucker decomposition of a stack of heads, and the form that stores it. Used by `tucker_heads.py` alone.

A projection whose outputs (or inputs) are heads, W (heads * d, n), is a tensor (heads, d, n). Tucker writes
it as a core (r1, r2, r3) multiplied along its modes by `mix` (heads, r1), `within` (d, r2), `outer` (n, r3).
A mode of full rank needs no matrix of its own (it is folded into the core), so a stack with only `outer` is
the ordinary low-rank pair, to the byte: whatever Tucker can win, it wins by `mix` or `within`.

`import tucker_form` registers the form, after which transformers loads checkpoints that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.forms import Child, Dense, Form, FormModule
from kanna.forms.base import Tensors, positive, register
from kanna.linalg.whitening import basis

DENSE = Dense()


def hosvd(tensor: Tensor) -> list[Tensor]:
    """Left singular vectors (d_i, d_i) of every unfolding, all of them."""
    found = []
    for mode, size in enumerate(tensor.shape):
        left = basis(tensor.movedim(mode, 0).flatten(1)).left
        found.append(left if left.shape[1] == size else torch.linalg.qr(left, mode="complete").Q)
    return found


def hooi(
    tensor: Tensor,
    ranks: Sequence[int],
    start: Sequence[Tensor] | None = None,
    sweeps: int = 25,
    tolerance: float = 1e-9,
) -> list[Tensor]:
    """Orthonormal factors (d_i, r_i) by HOSVD and then HOOI (De Lathauwer, De Moor and Vandewalle 2000).

    A sweep recomputes every factor from the tensor projected on the others, and never raises the error. A
    mode of full rank keeps the identity.

    Args:
        tensor: (d_1, ..., d_N).
        ranks: One per dimension; none but full ones above the product of the others.
        start: `hosvd(tensor)`, where it is known.
        sweeps: At most so many; 0 gives the HOSVD.
        tolerance: Stop when a sweep adds less than this share of the tensor's energy to the core.

    Raises:
        InputError: Ranks that do not fit.
    """
    fits = len(ranks) == tensor.ndim and all(
        1 <= rank <= size and (rank == size or rank * rank <= prod(ranks))
        for rank, size in zip(ranks, tensor.shape, strict=False)
    )
    if not fits:
        raise InputError(f"Tucker ranks {tuple(ranks)} do not fit a tensor of {tuple(tensor.shape)}")
    start = start or hosvd(tensor)
    factors = [
        left[:, :rank] if rank < len(left) else torch.eye(rank, dtype=tensor.dtype)
        for left, rank in zip(start, ranks, strict=True)
    ]
    total, captured = float(tensor.square().sum()), float(project(tensor, factors).square().sum())
    for _ in range(sweeps):
        for mode, rank in enumerate(ranks):
            if rank < tensor.shape[mode]:
                rest = project(tensor, factors, skip=mode).movedim(mode, 0).flatten(1)
                factors[mode] = basis(rest, max_rank=rank).left
        captured, before = float(project(tensor, factors).square().sum()), captured
        if captured - before <= tolerance * total:
            break
    return factors


def project(tensor: Tensor, factors: Sequence[Tensor], skip: int | None = None) -> Tensor:
    """Multiply by the transposed factors along every mode but `skip`; square ones are identities."""
    for mode, factor in enumerate(factors):
        if mode != skip and factor.shape[0] != factor.shape[1]:
            tensor = torch.tensordot(factor.T, tensor, dims=([1], [mode])).movedim(0, mode)
    return tensor


class TuckerLinear(FormModule):
    """The small matrices one after the other: n -> r3 -> (r1, r2) -> (heads, d), or the way back."""

    form: Tucker

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        form, held = self.form, dict(self.named_children())
        if form.side == "out":
            y = self.core(held["outer"](x) if "outer" in held else x)
            y = y.unflatten(-1, (form.head_rank or form.heads, -1))
            y = held["within"](y) if "within" in held else y
            y = held["mix"](y.transpose(-1, -2)).transpose(-1, -2) if "mix" in held else y
            y = y.flatten(-2)
        else:
            y = x.unflatten(-1, (form.heads, -1))
            y = held["within"](y) if "within" in held else y
            y = held["mix"](y.transpose(-1, -2)).transpose(-1, -2) if "mix" in held else y
            y = self.core(y.flatten(-2))
            y = held["outer"](y) if "outer" in held else y
        return y if self.bias is None else y + self.bias


@register("tucker")
@dataclass(frozen=True)
class Tucker(Form):
    """W with `heads` equal groups of rows (side "out") or columns (side "in") as a core and small matrices.

    With r1, r2, r3 = head_rank, width_rank, outer_rank, and None for a mode without a matrix of its own:

        side out   W = (mix (heads, r1) x within (d, r2)) core (r1 r2, r3) outer (r3, n)
        side in    W = outer (m, r3) core (r3, r1 r2) (mix (r1, heads) x within (r2, d))

    where x is the Kronecker product.
    """

    heads: int
    side: str = "out"
    head_rank: int | None = None
    width_rank: int | None = None
    outer_rank: int | None = None
    core: Form = DENSE
    mix: Form = DENSE
    within: Form = DENSE
    outer: Form = DENSE
    module: ClassVar[type[FormModule]] = TuckerLinear

    def __post_init__(self) -> None:
        if self.side not in ("out", "in"):
            raise InputError(f"the side of a tucker form is 'out' or 'in', found {self.side!r}")
        positive("tucker", "heads", self.heads)
        for name in ("head_rank", "width_rank", "outer_rank"):
            if getattr(self, name) is not None:
                positive("tucker", name, getattr(self, name))
        super().__post_init__()

    @property
    def nested(self) -> Mapping[str, Form]:
        ranks = {"core": 1, "mix": self.head_rank, "within": self.width_rank, "outer": self.outer_rank}
        return {name: getattr(self, name) for name, rank in ranks.items() if rank is not None}

    def children(self, m: int, n: int) -> dict[str, Child]:
        stacked, other = (m, n) if self.side == "out" else (n, m)
        width = stacked // self.heads
        full = {"mix": self.heads, "within": width, "outer": other}
        ranks = {"mix": self.head_rank, "within": self.width_rank, "outer": self.outer_rank}
        if stacked % self.heads or any((rank or 1) > full[name] for name, rank in ranks.items()):
            raise InputError(f"{self} does not fit a matrix of {m} x {n}")
        held = {name: rank or full[name] for name, rank in ranks.items()}
        shapes = {name: (full[name], held[name]) for name in full}
        shapes["core"] = (held["mix"] * held["within"], held["outer"])
        shapes["outer"] = shapes["outer"][::-1]
        if self.side == "in":
            shapes = {name: shape[::-1] for name, shape in shapes.items()}
        return {name: Child(form, *shapes[name]) for name, form in self.nested.items()}

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> Tensor:
        held = self.dense_children(tensors, m, n, dtype)
        if self.side == "in":
            held = {name: factor.T for name, factor in held.items()}
        weight = held["core"]
        weight = (weight @ held["outer"] if "outer" in held else weight).unflatten(
            0, (self.head_rank or self.heads, -1)
        )
        if "within" in held:
            weight = torch.einsum("dr,hrn->hdn", held["within"], weight)
        if "mix" in held:
            weight = torch.einsum("hr,rdn->hdn", held["mix"], weight)
        weight = weight.flatten(0, 1)
        return weight if self.side == "out" else weight.T.contiguous()
