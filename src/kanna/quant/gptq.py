"""Codes and scales that make the error of a layer's outputs small, from statistics of its inputs.

With G = sum x x^T, rounding W to W' costs sum ||(W - W') x||^2 = tr (W - W') G (W - W')^T, row by row.

`gptq` (Frantar et al. 2023, arXiv 2210.17323) rounds one input after the other, those with the largest
diagonal of G first, and lets the inputs that are not yet rounded make up for each error. With U the upper
Cholesky factor of G^-1, the error e_j = (w_j - w'_j) / U_jj changes what is left by -e_j U_j. The groups'
scales and zero-points are given beforehand, so the order of rounding leaves no trace in the result.

`refit` takes the codes as they are and finds each row's best scales: with v_k the steps q - z of group k and
0 elsewhere, the normal equations (v_k G v_l) s = (v_k G w), as many as a row has groups. No other scales have
a smaller error, so it cannot rise; a row whose equations are so badly conditioned that it would, stays.
"""

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.rounding import quantised

# Of the mean diagonal of G, added to all of it.
RIDGE = 0.01
# Inputs that are rounded before their errors reach those behind them in one product.
_BLOCK = 128
# Numbers of a weight whose equations are set up together.
_AT_A_TIME = 1 << 22
_JITTER = 1e-9


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> Tensor:
    """(m,) float64 sum of squared output differences of each row of two weights (m, n).

    Args:
        gram: (n, n) sum of x x^T.
    """
    off = weight.double() - other.double()
    return ((off @ gram.double()) * off).sum(1)


def better_of(weight: Tensor, grid: Grid, gram: Tensor) -> Codes:
    """The weight rounded by `minmax` or `mse`, row by row whichever has the smaller error of outputs."""
    first, second = quantised(weight, grid, "minmax"), quantised(weight, grid, "mse")
    errors = [output_error(weight, codes.weight, gram) for codes in (first, second)]
    return _rows_of(errors[1] < errors[0], second, first)


def gptq(weight: Tensor, gram: Tensor, start: Codes, ridge: float = RIDGE) -> Codes:
    """Codes of a weight (m, n) on the scales and zero-points of `start`.

    Args:
        gram: (n, n) sum of x x^T; inputs that never occur are rounded to the nearest.
        ridge: Share of the mean diagonal that is added.
    """
    grid, columns = start.grid, weight.shape[1]
    damped = _damped(gram, ridge)
    order = damped.diagonal().argsort(descending=True, stable=True)
    upper = _inverse_root(damped[order][:, order])
    left = weight.double()[:, order]
    scale = grid.spread(start.scale.double(), columns)[:, order]
    zero = grid.spread(start.zero.double(), columns)[:, order]
    codes = torch.empty_like(left)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = torch.empty_like(left[:, begin:end])
        for j in range(begin, end):
            codes[:, j] = ((left[:, j] / scale[:, j]).round() + zero[:, j]).clamp_(0, grid.top)
            error = (left[:, j] - scale[:, j] * (codes[:, j] - zero[:, j])) / upper[j, j]
            left[:, j + 1 : end] -= error[:, None] * upper[j, j + 1 : end]
            errors[:, j - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    back = codes[:, order.argsort()]
    return Codes(grid, back.to(torch.uint8), start.scale, start.zero)


def refit(weight: Tensor, gram: Tensor, codes: Codes) -> Codes:
    """The same codes with the scales that are best for each row, in float32.

    Args:
        weight: (m, n) what the outputs should be like.
        gram: (n, n) sum of x x^T.
    """
    some = max(1, _AT_A_TIME // weight.shape[1])
    gram = gram.double()
    scales = [
        _best_scales(rows, gram, Codes(codes.grid, *parts))
        for rows, *parts in zip(
            weight.double().split(some),
            codes.codes.split(some),
            codes.scale.split(some),
            codes.zero.split(some),
            strict=True,
        )
    ]
    new = Codes(codes.grid, codes.codes, torch.cat(scales), codes.zero)
    before, after = (output_error(weight, found.weight, gram) for found in (codes, new))
    return _rows_of(after < before, new, codes)


def _best_scales(weight: Tensor, gram: Tensor, codes: Codes) -> Tensor:
    """(m, groups) float32 solutions of the normal equations; groups of zeros keep their scale."""
    grid, columns = codes.grid, weight.shape[1]
    steps, size = codes.steps.double(), grid.size(columns)
    wanted = grid.sums((weight @ gram) * steps)
    equations = torch.stack(
        [
            grid.sums((steps[:, begin : begin + size] @ gram[begin : begin + size]) * steps)
            for begin in range(0, columns, size)
        ],
        -1,
    )
    diagonal = equations.diagonal(dim1=1, dim2=2)
    most = diagonal.amax(1, keepdim=True)
    silent = diagonal <= most * torch.finfo(torch.float64).eps
    # To the scales as they are, not to 0: what the statistics do not tell apart stays.
    pull = torch.where(silent, most.clamp(min=1e-300), _JITTER * most)
    left = equations + torch.diag_embed(pull)
    right = wanted + pull * codes.scale.double()
    found = torch.linalg.solve(left, right[..., None])[..., 0]
    found = torch.where(silent | ~found.isfinite(), codes.scale.double(), found)
    return found.float()


def _damped(gram: Tensor, ridge: float) -> Tensor:
    gram = gram.double()
    mean = gram.diagonal().mean()
    return gram + ridge * torch.where(mean > 0, mean, 1.0) * torch.eye(
        len(gram), dtype=gram.dtype, device=gram.device
    )


def _inverse_root(gram: Tensor) -> Tensor:
    """Upper triangular U with U^T U = G^-1."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)


def _rows_of(first: Tensor, yes: Codes, no: Codes) -> Codes:
    """Row by row (m,) one or the other."""
    return Codes(
        yes.grid,
        *(
            torch.where(first[:, None], getattr(yes, name), getattr(no, name))
            for name in ("codes", "scale", "zero")
        ),
    )
