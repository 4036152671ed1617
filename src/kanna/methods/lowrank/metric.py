"""Which quadratic error each method minimises: its input metric and its output metric."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.calibration.statistics import InputStatistics
from kanna.linalg.whitening import is_zero, with_ridge
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients, row_metric
from kanna.models.matrix import Matrix

# Gradient statistics of a few tens of thousands of tokens are noisy in their small directions.
OUTPUT_RIDGE = 0.3


@dataclass(frozen=True)
class Metric:
    """The error || D (W - W') R ||_F^2 of one matrix.

    Args:
        inputs: R R^T: (n, n), (n,) if diagonal, None for the identity.
        outputs: D^T D (m, m), or the diagonal of D (m,), None for the identity.
        weight: What the error counts in rank allocation; 0 where the loss feels nothing of the matrix.
    """

    inputs: Tensor | None
    outputs: Tensor | None
    weight: float


def metric_of(
    config: LowRankConfig,
    matrix: Matrix,
    statistics: InputStatistics | None,
    gradients: OutputGradients | None,
) -> Metric:
    """The metric of `matrix` under a resolved configuration.

    Args:
        statistics: Of its inputs; None for `plain`.
        gradients: Of its module's outputs; None where the configuration needs none, or none came there.
    """
    if config.needs_gradients and not is_felt(matrix, gradients):
        used = None if config.method == "fwsvd" else statistics
        return Metric(None if used is None else input_metric(config, matrix, used), None, 0.0)
    if config.method == "fwsvd" and gradients is not None:
        # Fisher information is itself the price of a squared change, of an entry: the mean of its row.
        return Metric(None, row_metric(gradients.fisher, matrix).sqrt(), 1.0 / matrix.in_features)
    inputs = None if statistics is None else input_metric(config, matrix, statistics)
    outputs = output_metric(config, matrix, gradients)
    if outputs is not None or gradients is None:
        return Metric(inputs, outputs, 1.0)
    part = row_metric(gradients.second, matrix)
    diagonal = part if part.dim() == 1 else part.diagonal()
    return Metric(inputs, None, float(diagonal.mean()) / gradients.count)


def is_felt(matrix: Matrix, gradients: OutputGradients | None) -> bool:
    """Whether the loss changes with the outputs of a matrix: a block of zeros (depth expansion) hides them.

    What float32 cannot hold is nothing: gradients are multiplied and kept in it.
    """
    if gradients is None or gradients.count == 0:
        return False
    part = row_metric(gradients.second, matrix)
    return not is_zero(part if part.dim() == 1 else part.diagonal(), torch.float32)


def input_metric(config: LowRankConfig, matrix: Matrix, statistics: InputStatistics) -> Tensor:
    """R R^T of a matrix: (n,) for ASVD (mean |x|, its scale squared), else the ridged second moments."""
    if config.method == "asvd":
        return (statistics.absolute / statistics.count).clamp_min(torch.finfo(torch.float32).tiny)
    gram = statistics.centred_gram if corrects_bias(config, matrix) else statistics.gram
    return with_ridge(gram, ridge_for(config, matrix, statistics.count))


def output_metric(config: LowRankConfig, matrix: Matrix, gradients: OutputGradients | None) -> Tensor | None:
    """The mean of g g^T with its ridge; (m,) its root where only the diagonal is kept; None if unwanted."""
    if config.outputs != "gradient" or gradients is None or not is_felt(matrix, gradients):
        return None
    second = with_ridge(row_metric(gradients.second, matrix) / gradients.count, OUTPUT_RIDGE)
    return second.sqrt() if second.dim() == 1 else second


def corrects_bias(config: LowRankConfig, matrix: Matrix) -> bool:
    """Whether the bias takes over the mean of what a matrix loses."""
    return (
        matrix.has_bias and config.bias_correction is not False and config.method in ("whitened", "anchored")
    )


def ridge_for(config: LowRankConfig, matrix: Matrix, tokens: int) -> float:
    """The ridge, ten times as much where there are fewer than four tokens for each input."""
    return config.ridge * (10.0 if tokens < 4 * matrix.in_features else 1.0)
