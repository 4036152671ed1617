"""Which singular values the task would rather lose: one backward pass through a few examples.

Removing component i of a matrix changes the loss by about -s_i g_i with g_i = dL/ds_i = u_i^T G v_i and
G = dL/dW, so the sum over what an edit removes ranks edits that nobody has run yet (arXiv 2510.20800: a
gradient step on a hundred examples; the exact statistic is not published, this is its first-order reading).
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from kanna.models.matrix import Matrix
from kanna.models.views import read
from kanna.tasks.data.rows import Row
from kanna.tasks.scorers.likelihood import Batch, Likelihood, Passes


def loss_weights(rows: Sequence[Row], likelihoods: Sequence[Sequence[Likelihood]]) -> list[float]:
    """Derivative of the mean loss by the log-likelihood of each continuation, in their order.

    The loss of a row with choices is the cross-entropy among them, of another row the negative
    log-likelihood of its likeliest right answer.

    Args:
        likelihoods: Those of each row's continuations in the model as it is.
    """
    weights: list[float] = []
    for row, choices in zip(rows, likelihoods, strict=True):
        sums = torch.tensor([choice.sum for choice in choices], dtype=torch.float64)
        if row.label is None:
            gold, shares = int(sums.argmax()), torch.zeros_like(sums)
        else:
            gold, shares = row.label, sums.softmax(0)
        shares[gold] -= 1
        weights += (shares / len(rows)).tolist()
    return weights


def weight_gradients(
    model: nn.Module, work: Sequence[tuple[Passes, Sequence[float]]], matrices: Sequence[Matrix]
) -> dict[str, Tensor]:
    """Matrix name -> dL/dW (m, n). Parameters keep no gradient afterwards.

    Args:
        work: Passes, and the derivative of the loss by each log-likelihood of theirs (`loss_weights`).
    """
    wanted = {matrix.tensor: model.get_parameter(matrix.tensor) for matrix in matrices}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        for passes, weights in work:
            for make in passes.batches:
                _backward(model, passes, make(), weights)
        return {matrix.name: _gradient(wanted[matrix.tensor], matrix) for matrix in matrices}
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
            parameter.grad = None


def _backward(model: nn.Module, passes: Passes, batch: Batch, weights: Sequence[float]) -> None:
    logits = passes.logits(model, batch.inputs, batch.places, True)
    values = logits[batch.index, batch.tokens] - torch.logsumexp(logits, -1)[batch.index]
    scale = values.new_tensor([weights[piece] for piece in batch.numbers])
    (values * scale).sum().backward()


def predicted_changes(values: Tensor, gradients: Tensor) -> list[float]:
    """First-order change of the loss for every rank k = 0..r: minus the sum of s_i g_i over i >= k.

    Args:
        values: (r,) singular values, descending.
        gradients: (r,) derivatives of the loss by them.
    """
    lost = (-(values * gradients)).flip(0).tolist()
    return [0.0, *accumulate(lost)][::-1]


def _gradient(parameter: nn.Parameter, matrix: Matrix) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(matrix.shape, device=parameter.device)
    return read(parameter.grad, matrix.view).clone()
