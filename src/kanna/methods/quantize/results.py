"""What quantising cost, as the lineage holds it; read by reports where no torch is."""

from kanna.result import Result, Several


class Role(Result):
    """The matrices of one role.

    Args:
        matrices: How many.
        bits_a_weight: With scales and zero-points.
        weight_error: Mean of their errors of weights.
        output_error: Mean of those of outputs; None without text.
        worst_matrix: The one with the largest error of outputs, or of weights where these are unknown.
        worst_error: Its error.
    """

    role: str
    matrices: int
    bits_a_weight: float
    weight_error: float
    output_error: float | None
    worst_matrix: str
    worst_error: float


class Quantised(Result):
    """A step.

    Args:
        weight_error: Matrix -> ||W - W'|| over ||W||.
        output_error: Matrix -> the same of its outputs on the calibration text; None where it read none.
        roles: In the order of a block.
    """

    matrices_quantized: int
    bytes_selected_before: int
    bytes_selected_after: int
    bits_a_weight: float
    weight_error: dict[str, float]
    output_error: dict[str, float | None] | None = None
    worst_matrix: str
    roles: Several[Role] = ()
