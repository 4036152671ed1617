"""The first pass: what each matrix would lose at every rank.

Walks the original model block by block, gathers input statistics, and decomposes every selected matrix
once under its metric. The result serves every budget: energies give the error curves, and (except for
`anchored`, whose factors depend on the blocks before) the factors of any rank are prefixes of the full ones.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
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

log = logging.getLogger("kanna")
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
        return self._all("energy")

    def means(self, layer: int) -> dict[str, Tensor]:
        """Matrix name -> (n,) mean input, of one block."""
        return _strip(self.workspace.load(_name(self.kind, layer), ":mean"), "mean")

    def factors(self, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Matrix name -> (expand (m, r), reduce (r, n)) of full rank, of one block; a rank is a prefix."""
        name = _name(self.kind, layer)
        expand = _strip(self.workspace.load(name, ":expand"), "expand")
        reduce = _strip(self.workspace.load(name, ":reduce"), "reduce")
        return {matrix: (expand[matrix].double(), reduce[matrix].double()) for matrix in expand}

    def _all(self, kind: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for layer in range(self.blocks):
            name = _name(self.kind, layer)
            if self.workspace.has(name):
                found |= _strip(self.workspace.load(name, f":{kind}"), kind)
        return found


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

    Args:
        config: Resolved.
        gradients: By module path; empty where the configuration needs none.
    """
    by_layer = _by_layer(selected)
    last = max(by_layer)
    kind = _kind(config, workspace, by_layer)
    if not all(workspace.has(_name(kind, layer)) for layer in by_layer):
        _survey_missing(walker, by_layer, windows, config, gradients, workspace, progress)
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
                found = statistics.setdefault(key, InputStatistics.empty(rows.shape[1], device))
                found.add(rows)
    return statistics, outputs


def _survey_missing(
    walker: Walker,
    by_layer: Mapping[int, Sequence[Matrix]],
    windows: Windows,
    config: LowRankConfig,
    gradients: Mapping[str, OutputGradients],
    workspace: Workspace,
    progress: Progress,
) -> None:
    hidden, calls = walker.prologue(windows, config.batch)
    masks = windows.mask.split(config.batch) if windows.padded else None
    kind = _KINDS[config.method == "anchored"]
    start = _first_open(workspace, by_layer, kind)
    stream = _stream(workspace, start)
    if start == 0 or not stream.exists():
        start, stream = 0, _stream(workspace, 0)
        stream.save(hidden)
    for layer in range(start, max(by_layer) + 1):
        progress("survey", layer, max(by_layer) + 1)
        path, block = walker.inventory.blocks[layer], walker.load(layer)
        matrices = by_layer.get(layer, ())
        statistics, outputs = gather(block, path, matrices, stream, calls[layer], masks, walker.device)
        name = _name(kind, layer)
        if matrices and not workspace.has(name):
            workspace.save(name, _decompose(block, path, matrices, statistics, config, gradients))
        if layer < max(by_layer):
            # The next block's hidden states say that this block is done: a killed run goes on from them.
            _stream(workspace, layer + 1).save(outputs)
            stream.drop()
            stream = _stream(workspace, layer + 1)
    progress("survey", max(by_layer) + 1, max(by_layer) + 1)


def plain_survey(
    walker: Walker,
    selected: Sequence[Matrix],
    config: LowRankConfig,
    workspace: Workspace,
    progress: Progress,
) -> Survey:
    """The same without calibration text, for `plain`: the weights alone decide."""
    by_layer = _by_layer(selected)
    for done, (layer, matrices) in enumerate(sorted(by_layer.items())):
        progress("survey", done, len(by_layer))
        if not workspace.has(_name("survey", layer)):
            block = walker.load(layer)
            path = walker.inventory.blocks[layer]
            workspace.save(_name("survey", layer), _decompose(block, path, matrices, {}, config, {}))
    progress("survey", len(by_layer), len(by_layer))
    return Survey(workspace, max(by_layer) + 1)


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
        found = statistics.get(matrix.input_key)
        metric = metric_of(config, matrix, found if used else None, gradients.get(matrix.module))
        weight = weight_of(block, path, matrix)
        result = basis(weight, metric.inputs, metric.outputs)
        held[f"{matrix.name}:energy"] = result.energy * metric.weight
        if found is not None:
            held[f"{matrix.name}:mean"] = found.mean
        if config.method != "anchored":
            # In float32: their rounding is far below that of the factors as they will be stored.
            expand, reduce = factors(weight, result, min(matrix.shape), torch.float32)
            held |= {f"{matrix.name}:expand": expand, f"{matrix.name}:reduce": reduce}
    return held


def _kind(config: LowRankConfig, workspace: Workspace, layers: Iterable[int]) -> str:
    """Anchored needs curves only, and takes them from a survey where there is one."""
    surveyed = all(workspace.has(_name("survey", layer)) for layer in layers)
    return _KINDS[config.method == "anchored" and not surveyed]


def _by_layer(matrices: Sequence[Matrix]) -> dict[int, list[Matrix]]:
    found: dict[int, list[Matrix]] = {}
    for matrix in matrices:
        found.setdefault(matrix.layer, []).append(matrix)
    return found


def _first_open(workspace: Workspace, layers: Iterable[int], kind: str) -> int:
    """The first block to run: that of the hidden states that a killed run left, or 0.

    A run of the other kind may have left them: the blocks before must have their files.
    """
    missing = min(layer for layer in layers if not workspace.has(_name(kind, layer)))
    left = [layer for layer in range(missing + 1) if _stream(workspace, layer).exists()]
    return max(left, default=0)


def _stream(workspace: Workspace, layer: int) -> Stream:
    return Stream(workspace.directory / f"hidden-{layer:03d}.safetensors")


def _strip(held: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    suffix = f":{kind}"
    return {name.removesuffix(suffix): value for name, value in held.items() if name.endswith(suffix)}


def _name(kind: str, layer: int) -> str:
    return f"{kind}-{layer:03d}.safetensors"
