"""The first pass: what each matrix would lose at every rank.

Walks the original model block by block, gathers input statistics, and decomposes every selected matrix
once under its metric. The result serves every budget: energies give the error curves, and (except for
`anchored`, whose factors depend on the blocks before) the factors of any rank are prefixes of the full ones.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.calibration.statistics import InputStatistics, captured, rows_of
from kanna.calibration.walker import Call, Walker, run_block
from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import check_finite
from kanna.linalg.whitening import basis, factors
from kanna.methods.lowrank.config import CALIBRATED, LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients
from kanna.methods.lowrank.metric import metric_of
from kanna.models.matrix import Matrix
from kanna.progress import Progress
from kanna.runs.assemble import matrix_weight
from kanna.runs.workspace import Stream, Workspace

_KINDS = ("survey", "curves")


@dataclass(frozen=True)
class Survey:
    """Decompositions of all selected matrices, in files.

    Args:
        workspace: One file a block.
        blocks: How many blocks have a file.
        kind: "survey" for files with factors, "curves" for files without.
    """

    workspace: Workspace
    blocks: int
    kind: str = "survey"

    def energies(self) -> dict[str, Tensor]:
        """Matrix name -> (r,) float64, weighed for comparison between matrices."""
        energies: dict[str, Tensor] = {}
        for layer in range(self.blocks):
            name = _name(self.kind, layer)
            if self.workspace.has(name):
                energies |= _strip(self.workspace, name, "energy")
        return energies

    def means(self, layer: int) -> dict[str, Tensor]:
        """Matrix name -> (n,) mean input, of one block."""
        return _strip(self.workspace, _name(self.kind, layer), "mean")

    def factors(self, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Matrix name -> (expand (m, r), reduce (r, n)) of full rank, of one block; a rank is a prefix."""
        name = _name(self.kind, layer)
        expand, reduce = (_strip(self.workspace, name, part) for part in ("expand", "reduce"))
        return {matrix: (expand[matrix].double(), reduce[matrix].double()) for matrix in expand}


def run_survey(
    walker: Walker,
    selected: Sequence[Matrix],
    windows: Windows,
    config: LowRankConfig,
    gradients: Mapping[str, OutputGradients],
    workspace: Workspace,
    progress: Progress,
) -> Survey:
    """Decompose the selected matrices, block by block; blocks that have a file already are not redone.

    Where the weights alone decide, no block is run.

    Args:
        config: Resolved.
        gradients: By module path; empty where the configuration needs none.
    """
    by_layer: dict[int, list[Matrix]] = defaultdict(list)
    for matrix in selected:
        by_layer[matrix.layer].append(matrix)
    last = max(by_layer)
    kind = _kind(config, workspace, by_layer)
    if not all(workspace.has(_name(kind, layer)) for layer in by_layer):
        blocks: Iterator[tuple[int, nn.Module, Mapping[str, InputStatistics]]]
        if config.method == "plain" and not config.needs_gradients:
            blocks = ((layer, walker.load(layer), {}) for layer in sorted(by_layer))
        else:
            blocks = _run(walker, by_layer, windows, config, workspace)
        for layer, block, statistics in blocks:
            progress("survey", layer, last + 1)
            name = _name(kind, layer)
            if layer in by_layer and not workspace.has(name):
                path = walker.inventory.blocks[layer]
                held = _decompose(block, path, by_layer[layer], statistics, config, gradients)
                workspace.save(name, held)
        progress("survey", last + 1, last + 1)
    for layer in range(last + 1):
        _stream(workspace, layer).drop()
    return Survey(workspace, last + 1, kind)


def gather(
    block: nn.Module,
    path: str,
    matrices: Sequence[Matrix],
    batches: Stream,
    calls: Sequence[Call],
    masks: Sequence[Tensor] | None,
    device: torch.device,
) -> tuple[dict[str, InputStatistics], list[Tensor]]:
    """Input statistics by input key, and the hidden states after the block."""
    statistics: dict[str, InputStatistics] = {}
    outputs = []
    with torch.no_grad(), captured(block, path, matrices) as seen:
        for index, call in enumerate(calls):
            outputs.append(run_block(block, batches.batch(index, device), call).cpu())
            for key, inputs in seen.items():
                rows = rows_of(inputs, None if masks is None else masks[index])
                sums = statistics.setdefault(key, InputStatistics.empty(rows.shape[1], device))
                sums.add(rows)
    return statistics, outputs


def _run(
    walker: Walker,
    by_layer: Mapping[int, Sequence[Matrix]],
    windows: Windows,
    config: LowRankConfig,
    workspace: Workspace,
) -> Iterator[tuple[int, nn.Module, Mapping[str, InputStatistics]]]:
    """Blocks from the first open one on, and what went into the selected matrices, by input key."""
    hidden, calls = walker.prologue(windows, config.batch)
    masks = windows.mask.split(config.batch) if windows.padded else None
    kind = _KINDS[config.method == "anchored"]
    start = _first_open(workspace, by_layer, kind)
    stream = _stream(workspace, start)
    if start == 0 or not stream.exists():
        start, stream = 0, _stream(workspace, 0)
        stream.save(hidden)
    for layer in range(start, max(by_layer) + 1):
        path, block = walker.inventory.blocks[layer], walker.load(layer)
        matrices = by_layer.get(layer, ())
        statistics, outputs = gather(block, path, matrices, stream, calls[layer], masks, walker.device)
        yield layer, block, statistics
        if layer < max(by_layer):
            # The next block's hidden states say that this block is done: a killed run goes on from them.
            _stream(workspace, layer + 1).save(outputs)
            stream.drop()
            stream = _stream(workspace, layer + 1)


def weight_of(block: nn.Module, path: str, matrix: Matrix) -> Tensor:
    """The matrix (m, n) in a loaded block.

    Raises:
        InputError: It holds NaN or infinity.
    """
    module = block.get_submodule(matrix.module.removeprefix(f"{path}."))
    return check_finite(matrix_weight(module, matrix.view), matrix.name)


def _decompose(
    block: nn.Module,
    path: str,
    matrices: Sequence[Matrix],
    statistics: Mapping[str, InputStatistics],
    config: LowRankConfig,
    gradients: Mapping[str, OutputGradients],
) -> dict[str, Tensor]:
    """What a survey file holds of a block: energies and means, and bases where they are final."""
    held: dict[str, Tensor] = {}
    used = config.method in CALIBRATED
    for matrix in matrices:
        inputs = statistics.get(matrix.input_key)
        metric = metric_of(config, matrix, inputs if used else None, gradients.get(matrix.module))
        weight = weight_of(block, path, matrix)
        result = basis(weight, metric.inputs, metric.outputs)
        held[f"{matrix.name}:energy"] = result.energy * metric.weight
        if inputs is not None:
            held[f"{matrix.name}:mean"] = inputs.mean
        if config.method != "anchored":
            # In float32: their rounding is far below that of the factors as they will be stored.
            expand, reduce = factors(weight, result, min(matrix.shape), torch.float32)
            held |= {f"{matrix.name}:expand": expand, f"{matrix.name}:reduce": reduce}
    return held


def _kind(config: LowRankConfig, workspace: Workspace, layers: Iterable[int]) -> str:
    """Anchored needs curves only, and takes them from a survey where there is one."""
    surveyed = all(workspace.has(_name("survey", layer)) for layer in layers)
    return _KINDS[config.method == "anchored" and not surveyed]


def _first_open(workspace: Workspace, layers: Iterable[int], kind: str) -> int:
    """The first block to run: that of the hidden states that a killed run left, or 0.

    A run of the other kind may have left them: the blocks before must have their files.
    """
    missing = min(layer for layer in layers if not workspace.has(_name(kind, layer)))
    left = [layer for layer in range(missing + 1) if _stream(workspace, layer).exists()]
    return max(left, default=0)


def _stream(workspace: Workspace, layer: int) -> Stream:
    return Stream(workspace.directory / f"hidden-{layer:03d}.safetensors")


def _strip(workspace: Workspace, file: str, part: str) -> dict[str, Tensor]:
    """Matrix name -> one part of what a file holds of it."""
    suffix = f":{part}"
    return {name.removesuffix(suffix): value for name, value in workspace.load(file, suffix).items()}


def _name(kind: str, layer: int) -> str:
    return f"{kind}-{layer:03d}.safetensors"
