"""How much the loss feels a change of each matrix's outputs: sums over gradients at the outputs of modules.

A change d of the output y of a matrix changes the loss by about g . d with g = dL/dy. Over tokens, that
is d^T H d with H = mean g g^T (m, m): the row metric of `linalg.whitening`, and its mean diagonal the weight
of the matrix in rank allocation (one number a matrix: mean ||dL/dy||^2 / m).

They come from one backward pass over the calibration text: block by block (`backward`), or, for a model that
cannot be run so, of the whole model in memory (`in_memory`).
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.calibration.statistics import add_products
from kanna.errors import InputError
from kanna.models.matrix import Matrix
from kanna.models.views import read_bias

# A full metric of more outputs costs more memory than the weight itself; beyond it only the diagonal is kept.
LARGEST_FULL_METRIC = 4096


@dataclass
class OutputGradients:
    """Sums over calibration tokens for the module of fused or single matrices.

    Attributes:
        second: (m, m), or (m,) where m is large: sum of g g^T, float64.
        fisher: (m,) row sums of the squared weight gradient, summed over windows (FWSVD); float64.
        count: tokens.
    """

    second: Tensor
    fisher: Tensor
    count: int = 0


Sums = dict[str, OutputGradients]


@contextmanager
def watched(
    modules: Iterable[tuple[str, nn.Module]], mask: Tensor | None, sums: Sums, fisher: bool
) -> Iterator[None]:
    """While active, a backward pass adds the gradients at the outputs of these modules.

    Args:
        modules: (path, module).
        mask: (b, length) bool; None where nothing is padding.
        sums: By path; changed.
        fisher: Also add row sums of squared weight gradients, which take further products.
    """
    with ExitStack() as hooks:
        for path, module in modules:

            def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                inputs = args[0].detach() if fisher else None
                if output.requires_grad:
                    output.register_hook(lambda gradient: _add(sums, path, inputs, gradient, mask))

            hooks.enter_context(module.register_forward_hook(forward))
        yield


def check_gradients(sums: Sums) -> None:
    """Raise InputError where a gradient overflowed: no factors could be made of it, hours later."""
    for path, found in sums.items():
        if not (found.second.isfinite().all() and found.fisher.isfinite().all()):
            raise InputError(
                f"the gradients at the outputs of {path} are not finite on this text",
                "weigh outputs equally: --allocation uniform --outputs equal",
            )


def row_metric(second: Tensor, matrix: Matrix) -> Tensor:
    """The part of a module's gradient statistics that belongs to one matrix: (m, m) or (m,)."""
    part = read_bias(second, matrix.view)
    return part if part.dim() == 1 else read_bias(part.T, matrix.view).T


def packed(second: Tensor) -> Tensor:
    """What a file holds of a sum (m, m) or (m,): float32, of a symmetric one the lower triangle."""
    if second.dim() == 1:
        return second.float()
    return torch.cat([row[: index + 1] for index, row in enumerate(second.float())])


def unpacked(held: Tensor, width: int) -> Tensor:
    """The sum again, (m, m) or (m,) float64, from `packed`."""
    if len(held) == width and width > 1:
        return held.double()
    second = torch.zeros(width, width, dtype=torch.float64)
    for index, row in enumerate(held.split(list(range(1, width + 1)))):
        second[index, : index + 1] = row
    return second + second.tril(-1).T


def _add(sums: Sums, path: str, inputs: Tensor | None, gradient: Tensor, mask: Tensor | None) -> None:
    rows = gradient.detach().reshape(-1, gradient.shape[-1])
    kept = rows if mask is None else rows[mask.reshape(-1).to(rows.device)]
    width = rows.shape[-1]
    total = sums.get(path)
    if total is None:
        shape = (width, width) if width <= LARGEST_FULL_METRIC else (width,)
        zeros = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        total = sums[path] = OutputGradients(zeros, zeros.new_zeros(width))
    if total.second.dim() == 2:
        add_products(total.second, kept)
    else:
        total.second += kept.square().sum(0, dtype=torch.float64)
    if inputs is not None:
        total.fisher += _fisher_rows(gradient.detach(), inputs)
    total.count += len(kept)


def _fisher_rows(gradient: Tensor, inputs: Tensor) -> Tensor:
    """(m,) sum over windows and columns of (dL/dW)^2, from g (b, t, m) and x (b, t, n).

    ||G^T X||^2 row by row is g-by-g times x-by-x products, so dL/dW (m, n) is never formed.
    """
    if gradient.dim() != 3:
        gradient = gradient.reshape(1, -1, gradient.shape[-1])
        inputs = inputs.reshape(1, -1, inputs.shape[-1])
    overlap = inputs @ inputs.transpose(1, 2)
    return ((overlap @ gradient) * gradient).sum((0, 1), dtype=torch.float64)
