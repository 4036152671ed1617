"""A matrix as a sum of bases, each with a weight that is learnt.

    W = sum_i sigma_i u_i v_i^T        y = U (s * (R x)) + Ua (Va x)

U (m, k) has orthonormal columns u_i, and R = U^T W (k, n) the rows sigma0_i v_i^T, so that at first the sum
is W. Learnt are s = (1 + d)^2 with d = 0 at first: sigma_i = sigma0_i s_i cannot become negative, and a rate
of d means the same for matrices of any scale. Ua (m, e) = 0 and Va (e, n) are new bases, there for what the
task needs and W does not have. The product is never multiplied out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kanna.linalg.whitening import basis

# Bases below this share of the largest are zero but for rounding.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Decomposed:
    """W = left @ right.

    Args:
        left: (m, k) orthonormal columns.
        right: (k, n) rows sigma0_i v_i^T.
    """

    left: Tensor
    right: Tensor

    def keep(self, places: Tensor) -> "Decomposed":
        return Decomposed(self.left[:, places].contiguous(), self.right[places].contiguous())


def decomposed(weight: Tensor, dtype: torch.dtype = torch.float32, gram: Tensor | None = None) -> Decomposed:
    """Bases of a weight (m, n), the largest first; those that are nothing but rounding are left out.

    Args:
        gram: (n, n) sum of x x^T over inputs of the task: then the bases are the directions in which outputs
            lie (eigenvectors of W G W^T); None for singular vectors.
    """
    found = basis(weight, gram)
    norms = (found.left.T @ weight.to(found.left.dtype)).norm(dim=1)
    kept = max(1, int((norms > _NOTHING * norms.max()).sum())) if gram is None else found.left.shape[1]
    left = found.left[:, :kept]
    return Decomposed(left.to(dtype), (left.T @ weight.to(left.dtype)).to(dtype))


class Bases(nn.Module):
    """One matrix (m, n).

    Args:
        start: Its bases.
        extra: How many new ones.
        generator: Of the new ones.
        roots: Learn w with sigma = w^2, as the paper does, in place of d.
    """

    left: Tensor
    right: Tensor
    offset: Tensor
    unit: Tensor

    def __init__(
        self, start: Decomposed, extra: int, generator: torch.Generator, roots: bool = False
    ) -> None:
        super().__init__()
        (m, count), n = start.left.shape, start.right.shape[1]
        device = start.left.device
        self.roots = roots
        self.register_buffer("left", start.left.contiguous())
        self.register_buffer("right", start.right.contiguous())
        self._set_units()
        first = self.right.norm(dim=1).sqrt() if roots else torch.zeros(count, device=device)
        self.weight = nn.Parameter(first)
        drawn = torch.randn(extra, n, generator=generator) / max(1, extra) ** 0.5
        self.new_left = nn.Parameter(torch.zeros(m, extra, device=device))
        self.new_right = nn.Parameter(drawn.to(device))

    def _set_units(self) -> None:
        """(1 + d)^2 = (offset + unit p)^2, or w^2 / sigma0: offset 0 and unit 1 / sqrt(sigma0).

        A basis of nothing, as of a matrix of zeros, stays nothing whatever its weight.
        """
        norms = self.right.norm(dim=1)
        units = torch.where(norms > 0, norms.rsqrt(), 1.0) if self.roots else torch.ones_like(norms)
        self.register_buffer("offset", torch.full_like(norms, 0.0 if self.roots else 1.0))
        self.register_buffer("unit", units)

    @property
    def root(self) -> Tensor:
        """(k,) 1 + d."""
        return self.offset + self.unit * self.weight

    @property
    def scale(self) -> Tensor:
        """(k,) sigma over sigma0."""
        return self.root.square()

    @property
    def sigma(self) -> Tensor:
        """(k,) weights of the bases."""
        return self.right.norm(dim=1) * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        old = functional.linear(functional.linear(hidden, self.right) * self.scale, self.left)
        if not len(self.new_right):
            return old
        return old + functional.linear(functional.linear(hidden, self.new_right), self.new_left)

    def sensitivity(self) -> Tensor:
        """(k,) sigma_i times the loss's slope in sigma_i, from the gradient of `weight`.

        dL/dd_i = 2 (1 + d_i) sigma0_i dL/dsigma_i, hence sigma_i dL/dsigma_i = (1 + d_i) / 2 dL/dd_i.
        """
        if self.weight.grad is None:  # the matrix took no part in the step
            return torch.zeros_like(self.weight)
        return self.root.detach() / (2 * self.unit) * self.weight.grad

    def hold(self, kept: Decomposed) -> None:
        """Take these bases in place of those held; the parameters are cut by whoever trains them."""
        self.left, self.right = kept.left, kept.right
        self._set_units()

    def factors(self) -> tuple[Tensor, Tensor]:
        """(m, r) and (r, n) whose product is the matrix, r = k + e."""
        scale = self.scale.detach()
        return (
            torch.cat([self.left, self.new_left.detach()], 1),
            torch.cat([scale[:, None] * self.right, self.new_right.detach()]),
        )


class BasesLayer(nn.Module):
    """A linear layer of which some rows are sums of bases.

    Args:
        parts: (rows of the output or None for all, a module (..., n) -> (..., rows)).
        bias: (m,) or None; it stays as it is.
        size: m.
    """

    bias: Tensor | None

    def __init__(
        self, parts: Sequence[tuple[Tensor | None, nn.Module]], bias: Tensor | None, size: int
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for _, part in parts)
        for number, (rows, _) in enumerate(parts):
            self.register_buffer(f"rows_{number}", rows, persistent=False)  # so that they go where it goes
        self.size = size
        self.register_buffer("bias", bias)
        # As a form has one: some models ask for a layer's weight though they do not compute with it.
        self.register_buffer("weight", torch.zeros(1), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        out = self._in_place([part(hidden) for part in self.parts])
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _in_place(self, outputs: Sequence[Tensor]) -> Tensor:
        """(..., m), in the dtype that autocast computes the parts in."""
        out = outputs[0].new_zeros(*outputs[0].shape[:-1], self.size)
        for number, part in enumerate(outputs):
            rows = getattr(self, f"rows_{number}")
            out = part if rows is None else out.index_copy(-1, rows, part)
        return out


class Held(nn.Module):
    """Rows of a fused layer that stay dense.

    Args:
        weight: (rows, n).
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight)
