"""The first pass: what each matrix would lose at every rank.

Walks the original model block by block, gathers input statistics, and decomposes every selected matrix
once under its metric. The result serves every budget: energies give the error curves, and (except for
`anchored`, whose factors depend on the blocks before) the factors of any rank are prefixes of the full ones.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from kanna.calibration.passage import Passage
from kanna.calibration.statistics import InputStatistics, Reads, captured
from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import check_finite
from kanna.forms import Form
from kanna.linalg.whitening import balanced, basis, factors
from kanna.methods.lowrank.config import CALIBRATED, LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients
from kanna.methods.lowrank.metric import is_felt, metric_of
from kanna.methods.lowrank.ranks import highest_rank
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
        layers: The blocks that have a file.
        kind: "survey" for files with factors, "curves" for files without.
    """

    workspace: Workspace
    layers: Sequence[int]
    kind: str = "survey"

    def energies(self) -> dict[str, Tensor]:
        """Matrix name -> (r,) float64, weighed for comparison between matrices."""
        energies: dict[str, Tensor] = {}
        for layer in self.layers:
            energies |= _strip(self.workspace, survey_file(self.kind, layer), "energy")
        return energies

    def unfelt(self) -> list[str]:
        """Names of matrices whose outputs the loss does not feel."""
        names = (survey_file(self.kind, layer) for layer in self.layers)
        return [matrix for name in names for matrix in self.workspace.note(name)["unfelt"]]

    def means(self, layer: int) -> dict[str, Tensor]:
        """Matrix name -> (n,) mean input, of one block."""
        return _strip(self.workspace, survey_file(self.kind, layer), "mean")

    def factors(self, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Matrix name -> (expand (m, r), reduce (r, n)), of one block; a rank is a prefix.

        r is the highest rank that makes a matrix smaller.
        """
        name = survey_file(self.kind, layer)
        expand, reduce = (_strip(self.workspace, name, part) for part in ("expand", "reduce"))
        return {matrix: (expand[matrix].double(), reduce[matrix].double()) for matrix in expand}


@dataclass(frozen=True)
class Decomposing:
    """What is made of a block once its statistics are known.

    Args:
        walker: Of the model.
        selected: What may be replaced.
        config: Resolved.
        stored: Matrix name -> how it is stored now.
        dtype: Stored dtype by module path.
    """

    walker: Walker
    selected: Sequence[Matrix]
    config: LowRankConfig
    stored: Mapping[str, Form]
    dtype: Callable[[str], torch.dtype]

    @cached_property
    def by_layer(self) -> Mapping[int, Sequence[Matrix]]:
        """The selected matrices of each layer that has some."""
        found: dict[int, list[Matrix]] = defaultdict(list)
        for matrix in self.selected:
            found[matrix.layer].append(matrix)
        return found

    def save(
        self,
        workspace: Workspace,
        kind: str,
        layer: int,
        block: nn.Module,
        statistics: Mapping[str, InputStatistics],
        gradients: Mapping[str, OutputGradients],
    ) -> None:
        """Write the survey file of a block.

        Args:
            kind: Of the file.
            statistics: By module path; may be empty where weights alone decide.
            gradients: By module path; may be empty.
        """
        matrices = self.by_layer[layer]
        held: dict[str, Tensor] = {}
        for matrix in matrices:
            held |= self._decomposed(matrix, block, statistics.get(matrix.module), gradients)
        workspace.save(survey_file(kind, layer), held, {"unfelt": _unfelt(matrices, self.config, gradients)})

    def _decomposed(
        self,
        matrix: Matrix,
        block: nn.Module,
        inputs: InputStatistics | None,
        gradients: Mapping[str, OutputGradients],
    ) -> dict[str, Tensor]:
        """Energies and the mean input, and factors where they are final; of what read nothing, nothing."""
        used = self.config.method in CALIBRATED
        if used and (inputs is None or inputs.count == 0):
            return {}
        path = self.walker.inventory.blocks[matrix.layer]
        metric = metric_of(self.config, matrix, inputs if used else None, gradients.get(matrix.module))
        weight = weight_of(block, path, matrix)
        result = basis(weight, metric.inputs, metric.outputs)
        held = {f"{matrix.name}:energy": result.energy * metric.weight}
        if inputs is not None:
            held[f"{matrix.name}:mean"] = inputs.mean
        rank = highest_rank(matrix, self.config, self.stored[matrix.name])
        if rank and _is_final(self.walker, self.config, matrix.layer):
            expand, reduce = balanced(*factors(weight, result, rank))
            dtype = self._kept(matrix)
            held |= {f"{matrix.name}:expand": expand.to(dtype), f"{matrix.name}:reduce": reduce.to(dtype)}
        return held

    def _kept(self, matrix: Matrix) -> torch.dtype:
        """A pair is kept as it will be stored; a pivot is still to be made of it, and rounded then."""
        return torch.float32 if self.config.storage == "pivot" else self.dtype(matrix.module)


def run_survey(
    decomposing: Decomposing,
    windows: Windows,
    gradients: Mapping[str, OutputGradients],
    workspace: Workspace,
    progress: Progress,
) -> Survey:
    """Decompose the selected matrices, block by block; blocks that have a file already are not redone.

    Where the weights alone decide, no block is run.

    Args:
        gradients: By module path; empty where the configuration needs none.
    """
    walker, config, by_layer = decomposing.walker, decomposing.config, decomposing.by_layer
    last = max(by_layer)
    kind = survey_kind(config, workspace, by_layer)
    if not all(workspace.has(survey_file(kind, layer)) for layer in by_layer):
        blocks: Generator[tuple[int, nn.Module, Mapping[str, InputStatistics]], None, None]
        if config.method == "plain" and not config.needs_gradients:
            blocks = ((layer, walker.load(layer), {}) for layer in sorted(by_layer))
        else:
            blocks = _run(walker, by_layer, windows, config, workspace, kind)
        with closing(blocks):
            for layer, block, statistics in blocks:
                progress("survey", layer, last + 1)
                name = survey_file(kind, layer)
                if layer in by_layer and not workspace.has(name):
                    decomposing.save(workspace, kind, layer, block, statistics, gradients)
        progress("survey", last + 1, last + 1)
    for layer in range(last + 1):
        _stream(workspace, layer).drop()
    return Survey(workspace, sorted(by_layer), kind)


def gather(
    block: nn.Module,
    path: str,
    modules: Iterable[str],
    passage: Passage,
    masks: Sequence[Tensor | None],
    reads: Reads,
) -> None:
    """Run the block at hand on all batches, and take in what its modules read.

    Args:
        path: Of the block.
        modules: Full paths.
    """
    with torch.no_grad(), captured(block, path, modules) as seen:
        for index in range(passage.batches):
            passage.put(index, passage.call(index).run(block))
            reads.add(seen, masks[index])
            seen.clear()


def _run(
    walker: Walker,
    by_layer: Mapping[int, Sequence[Matrix]],
    windows: Windows,
    config: LowRankConfig,
    workspace: Workspace,
    kind: str,
) -> Generator[tuple[int, nn.Module, Mapping[str, InputStatistics]], None, None]:
    """Blocks from the first open one on, and what went into the selected matrices, by module path."""
    batches = walker.batches(windows, windows.at_once(config.batch))
    masks = [mask for _, mask in batches]
    start = _first_open(workspace, by_layer, kind)
    stream = partial(_stream, workspace)
    last = max(visit for visit, layer in enumerate(walker.visits) if layer in by_layer)
    blocks: dict[int, nn.Module] = {}
    reads: dict[int, Reads] = defaultdict(Reads)
    with walker.walk(batches, [stream], start if stream(start).exists() else 0) as (passage,):
        while passage.visit <= last:
            layer = walker.visits[passage.visit]
            path = walker.inventory.blocks[layer]
            block = blocks.pop(layer, None) or walker.load(layer)
            gather(block, path, [m.module for m in by_layer.get(layer, ())], passage, masks, reads[layer])
            if layer in walker.visits[passage.visit + 1 :]:
                blocks[layer] = block
            else:
                yield layer, block, reads.pop(layer).of
            if passage.visit == last:
                break
            # The next block's hidden states say that this block is done: a killed run goes on from them.
            passage.turn()
            passage.forget()


def weight_of(block: nn.Module, path: str, matrix: Matrix) -> Tensor:
    """The matrix (m, n) in a loaded block.

    Raises:
        InputError: It holds NaN or infinity.
    """
    module = block.get_submodule(matrix.module.removeprefix(f"{path}."))
    return check_finite(matrix_weight(module, matrix.view), matrix.name)


def _is_final(walker: Walker, config: LowRankConfig, layer: int) -> bool:
    """Whether factors are those of the survey: what a block that is run again reads depends on itself."""
    return config.method != "anchored" or layer in walker.trial.repeated


def _unfelt(
    matrices: Sequence[Matrix], config: LowRankConfig, gradients: Mapping[str, OutputGradients]
) -> list[str]:
    if not config.needs_gradients:
        return []
    return [matrix.name for matrix in matrices if not is_felt(matrix, gradients.get(matrix.module))]


def survey_kind(config: LowRankConfig, workspace: Workspace, layers: Iterable[int]) -> str:
    """Anchored needs curves only, and takes them from a survey where there is one."""
    surveyed = all(workspace.has(survey_file("survey", layer)) for layer in layers)
    return _KINDS[config.method == "anchored" and not surveyed]


def _first_open(workspace: Workspace, layers: Iterable[int], kind: str) -> int:
    """The first block to run: that of the hidden states that a killed run left, or 0.

    A run of the other kind may have left them: the blocks before must have their files.
    """
    missing = min(layer for layer in layers if not workspace.has(survey_file(kind, layer)))
    left = [layer for layer in range(missing + 1) if _stream(workspace, layer).exists()]
    return max(left, default=0)


def _stream(workspace: Workspace, layer: int) -> Stream:
    return Stream(workspace.directory / f"hidden-{layer:03d}.safetensors")


def _strip(workspace: Workspace, file: str, part: str) -> dict[str, Tensor]:
    """Matrix name -> one part of what a file holds of it."""
    suffix = f":{part}"
    return {name.removesuffix(suffix): value for name, value in workspace.load(file, suffix).items()}


def survey_file(kind: str, layer: int) -> str:
    return f"{kind}-{layer:03d}.safetensors"
