"""How much memory a run needs, foretold from headers; factors were measured with models of several widths.

The allocator keeps some of what was freed, which is `_KEPT` of all that comes and goes.
"""

from collections import defaultdict
from collections.abc import Sequence

from kanna.calibration.calls import states_of
from kanna.calibration.windows import Windows
from kanna.methods.quantize.config import QuantizeConfig
from kanna.models.matrix import Matrix
from kanna.runs.source import Source

# Python, torch and transformers, with what they set up once.
PROGRAM = 500_000_000
_KEPT = 1.2
# Bytes for each weight of the matrix at hand: itself, its codes, and what tries them out.
_ROUNDING = 40
# Bytes for each pair of inputs: second moments, their factors, and what is made on the way to these.
_MOMENTS, _BOTH_MOMENTS = 48, 56
# Numbers for each token of a batch and output of the widest matrix: what a block has at once.
_ALIVE = 5


def peak_memory(
    source: Source, config: QuantizeConfig, selected: Sequence[Matrix], windows: Windows | None, after: int
) -> int:
    """Bytes at the worst moment: while quantising, or when what was written is read back.

    Args:
        config: Resolved.
        after: Bytes of the selected matrices at the end.
    """
    largest = max(matrix.parameters for matrix in selected)
    rounding = _ROUNDING * largest
    if windows is not None:
        rounding += _calibrated(source, config, selected, windows)
    others = source.inventory.parameters - sum(matrix.parameters for matrix in selected)
    return PROGRAM + max(int(_KEPT * rounding), 4 * others + after + 12 * largest)


def _calibrated(source: Source, config: QuantizeConfig, selected: Sequence[Matrix], windows: Windows) -> int:
    """A block as it is and as it becomes, beside the one before it; what it reads; and a batch in it."""
    blocks: defaultdict[int, int] = defaultdict(int)
    for matrix in source.inventory.matrices:
        blocks[matrix.layer] += matrix.parameters
    whole = 4 * source.inventory.parameters if source.trial.irregular else 0
    pair = _BOTH_MOMENTS if config.inputs == "anchored" else _MOMENTS
    moments = pair * max(matrix.in_features for matrix in selected) ** 2
    return whole + 12 * max(blocks.values()) + moments + _states(source, config, windows)


def _states(source: Source, config: QuantizeConfig, windows: Windows) -> int:
    """Hidden states behind a block on both sides and as they are saved; masks; what a batch leaves there."""
    count, length = windows.ids.shape
    hidden = max(states_of(each).shape[-1] for each in source.trial.returned.values())
    masks = 4 * count * length**2 if windows.padded else 0
    widest = max(max(matrix.shape) for matrix in source.inventory.matrices)
    return 12 * count * length * hidden + masks + 4 * min(config.batch, count) * length * _ALIVE * widest
