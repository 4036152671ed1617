"""What low-rank replacement is going to do, before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from kanna.checkpoint.fits import check_shapes
from kanna.checkpoint.reader import Checkpoint, refuse_quantized
from kanna.errors import InputError
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import LARGEST_FULL_METRIC
from kanna.methods.lowrank.ranks import allocate, kept_parameters
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.names import tensor_name
from kanna.models.selection import select
from kanna.models.skeleton import skeleton


@dataclass(frozen=True)
class Plan:
    """Which matrices, at what budget.

    Args:
        config: Resolved.
        inventory: Of the whole model.
        selected: What may be replaced.
        ranks: By matrix name; None until the survey under global allocation.
        memory: Predicted peak bytes.
        work_bytes: Predicted bytes of files of work in progress.
        notes: What the user should know.
    """

    config: LowRankConfig
    inventory: Inventory
    selected: tuple[Matrix, ...]
    ranks: Ranks | None
    memory: int
    work_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def dense_parameters(self) -> int:
        """Of the selected matrices."""
        return sum(matrix.parameters for matrix in self.selected)

    @property
    def nothing_to_do(self) -> bool:
        return self.config.keep == 1.0

    def to_dict(self) -> dict[str, Any]:
        budget = self.config.keep
        return {
            "config": self.config.model_dump(mode="json"),
            "matrices": len(self.selected),
            "dense_parameters": self.dense_parameters,
            "budget_parameters": None if budget is None else int(budget * self.dense_parameters),
            "model_parameters": self.inventory.parameters,
            "ranks": self.ranks,
            "predicted_peak_memory_bytes": self.memory,
            "predicted_work_bytes": self.work_bytes,
            "notes": list(self.notes),
        }


def make_plan(
    checkpoint: Checkpoint, config: LowRankConfig, tokens: int, backward: int | None, has_text: bool
) -> Plan:
    """Decide what can be decided without reading a weight.

    Args:
        tokens: Calibration tokens; 0 without text.
        backward: Bytes that a backward pass through the whole model needs; None if they are not free.

    Raises:
        InputError: An already compressed or unknown model, a selection that matches nothing, a budget that
            cannot be reached, a method that needs text without text.
    """
    refuse_quantized(checkpoint.config, checkpoint.name)
    gradients_fit = backward is not None
    resolved = config.resolved(has_text, gradients_fit)
    notes = []
    if resolved.method != "plain" and not has_text and resolved.keep != 1.0:
        raise InputError(
            f"method {resolved.method} needs calibration text",
            "give --calibration FILE (.jsonl or .txt, some ten thousand tokens), or choose --method plain",
        )
    if config.allocation is None and has_text and not gradients_fit and config.keep is not None:
        notes.append("allocation is uniform: gradients of the whole model do not fit in memory")
    if resolved.refine and not has_text and resolved.keep != 1.0:
        raise InputError(
            "refinement trains blocks on calibration text, and there is none",
            "give --calibration FILE (.jsonl or .txt, some ten thousand tokens), or leave out --refine",
        )
    if resolved.needs_gradients and not (has_text and gradients_fit) and resolved.keep != 1.0:
        why = "the model does not fit in memory for a backward pass" if has_text else "no calibration text"
        raise InputError(
            f"allocation {resolved.allocation}, outputs {resolved.outputs} and method {resolved.method} need "
            f"gradients, and there are none: {why}",
            "choose --allocation uniform --outputs equal, or give text on a machine with more memory",
        )
    meta = skeleton(checkpoint.directory)
    found = inventory(meta)
    check_shapes(checkpoint, meta, {matrix.tensor for matrix in found.refused})
    selected = select(found.matrices, resolved.select)
    _check_present(checkpoint, found, selected)
    even = resolved.model_copy(update={"allocation": "uniform"})
    ranks = allocate(selected, {}, even)  # raises where the budget cannot be reached
    if found.refused:
        notes.append(f"{len(found.refused)} matrices are left out: {found.refused[0].refused}")
    return Plan(
        resolved,
        found,
        selected,
        None if resolved.allocation == "global" else ranks,
        _memory(found, resolved, tokens, backward or 0),
        _work_bytes(found, resolved, tokens),
        tuple(notes),
    )


def share_kept(plan: Plan, ranks: Ranks) -> float:
    """Parameters of the selected matrices kept, over the original ones."""
    return kept_parameters(plan.selected, ranks, plan.config) / plan.dense_parameters


def check_memory(plan: Plan) -> None:
    """Raise InputError where what is free now cannot hold one block's work."""
    available = psutil.virtual_memory().available
    if plan.memory > available:
        raise InputError(
            f"about {plan.memory / 1e9:.1f} GB of memory are needed and {available / 1e9:.1f} GB are free",
            "lower --tokens or --batch, or choose --method whitened, whose blocks are run once",
        )


def _check_present(checkpoint: Checkpoint, found: Inventory, selected: Sequence[Matrix]) -> None:
    for matrix in selected:
        if tensor_name(matrix.tensor, checkpoint.tensors, found.base_model_prefix) is None:
            raise InputError(
                f"{checkpoint.directory} lacks the tensor {matrix.tensor}, which {found.architecture} needs",
                "fetch the model again; or leave the matrix out with --select",
            )


def _memory(found: Inventory, config: LowRankConfig, tokens: int, backward: int) -> int:
    """Three copies of the largest block in float32, its statistics in float64, and one batch's activations.

    Gradients, if they are wanted, need a backward pass and the statistics of all outputs instead.
    """
    blocks: dict[int, list[Matrix]] = {}
    for matrix in found.matrices:
        blocks.setdefault(matrix.layer, []).append(matrix)
    largest = max(blocks.values(), key=lambda matrices: sum(m.parameters for m in matrices))
    weights = 4 * sum(m.parameters for m in largest)
    inputs = {m.input_key: m.in_features for m in largest}
    statistics = 8 * sum(n * n for n in inputs.values())
    widest = max(max(m.shape) for m in largest)
    decomposition = 8 * 4 * widest * min(widest, 16_384)
    streams = 3 * 4 * tokens * max(m.in_features for m in largest)
    widths = [m.out_features for m in found.matrices]
    outputs = 8 * sum(width**2 if width <= LARGEST_FULL_METRIC else width for width in widths)
    whole = backward + outputs if config.needs_gradients else 0
    return 500_000_000 + max(3 * weights + 2 * statistics + decomposition + streams, whole)


def _work_bytes(found: Inventory, config: LowRankConfig, tokens: int) -> int:
    """Two streams before and after a block, and decompositions of all matrices in float32."""
    width = max(m.in_features for m in found.matrices)
    decompositions = 0 if config.method == "anchored" else sum(4 * m.out_features**2 for m in found.matrices)
    return 4 * 4 * tokens * width + decompositions + 2 * sum(m.parameters for m in found.matrices)
