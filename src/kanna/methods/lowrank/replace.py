"""The second pass: replace the chosen matrices, block by block.

`whitened`, `plain`, `asvd`, `fwsvd` take their factors from the survey. `anchored` walks two streams, the
hidden states of the original and of the compressed model, and fits each group of matrices that read the
same input, in the order in which the block computes them, to the original outputs (arXiv 2604.02119):

    W* = W (G_xh + lam I)(G_hh + lam I)^-1,   then the rank-k optimum of W* under G_hh
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.calibration.statistics import captured, rows_of
from kanna.calibration.walker import Call, Reached, Walker, run_block
from kanna.linalg.allocation import Ranks
from kanna.linalg.whitening import anchored_target, basis, factors, with_ridge
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients
from kanna.methods.lowrank.metric import corrects_bias, output_metric, ridge_for
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.refine import RefineTask, refine_block
from kanna.methods.lowrank.survey import Survey, weight_of
from kanna.models.matrix import Matrix
from kanna.progress import Progress
from kanna.runs.assemble import Factors, Piece, assemble, install_piece
from kanna.runs.workspace import Stream, Workspace


@dataclass(frozen=True)
class Replacement:
    """All that the second pass needs.

    Args:
        walker: The original model.
        plan: What is replaced, and how.
        ranks: By name of the selected matrices; None for one that stays dense.
        gradients: By module path; may be empty.
        survey: Of the first pass.
        workspace: Where finished blocks go.
        dtype: Stored dtype by module path.
    """

    walker: Walker
    plan: Plan
    ranks: Ranks
    gradients: Mapping[str, OutputGradients]
    survey: Survey
    workspace: Workspace
    dtype: Callable[[str], torch.dtype]

    @property
    def config(self) -> LowRankConfig:
        return self.plan.config

    @property
    def matrices(self) -> Sequence[Matrix]:
        """Those of the whole model."""
        return self.plan.inventory.matrices


@dataclass(frozen=True)
class _Block:
    """A block as it is and as it becomes, and the stream of hidden states into each.

    Args:
        layer: Which.
        path: Of the block.
        original: The block as it is.
        compressed: A copy, of which matrices are replaced.
        inputs: Hidden states of the original model.
        inputs_hat: Those of the compressed one.
        calls: How the model calls the block, batch by batch.
        masks: (b, length) bool, batch by batch; None where nothing is padding.
    """

    layer: int
    path: str
    original: nn.Module
    compressed: nn.Module
    inputs: Stream
    inputs_hat: Stream
    calls: Sequence[Call]
    masks: Sequence[Tensor] | None


def replace_blocks(job: Replacement, progress: Progress) -> None:
    """Compute and save every block; blocks that are saved already are not redone."""
    count = len(job.walker.inventory.blocks)
    start = next((i for i in range(count) if not job.workspace.has(block_file(i))), count)
    if start == count:
        return
    # What needs no stream of its own is run through once, as the probe.
    windows = job.plan.windows if job.config.two_streams else job.plan.windows.first(1)
    hidden, calls = job.walker.prologue(windows, job.config.batch)
    masks = windows.mask.split(job.config.batch) if windows.padded else None
    if start == 0:
        _stream(job, "original", 0).save(hidden)
        _stream(job, "compressed", 0).save(hidden)
    for layer in range(start, count):
        progress("replace", layer, count)
        original, path = job.walker.load(layer), job.walker.inventory.blocks[layer]
        streams = _stream(job, "original", layer), _stream(job, "compressed", layer)
        _replace_block(
            job, _Block(layer, path, original, copy.deepcopy(original), *streams, calls[layer], masks)
        )
        for stream in streams:
            stream.drop()
    progress("replace", count, count)


def block_file(layer: int) -> str:
    return f"block-{layer:03d}.safetensors"


def probe_file(layer: int) -> str:
    """The first window's hidden states after a block, for whoever verifies the output."""
    return f"probe-{layer:03d}.safetensors"


def _stream(job: Replacement, which: str, layer: int) -> Stream:
    return Stream(job.workspace.directory / f"{which}-{layer:03d}.safetensors")


def _replace_block(job: Replacement, block: _Block) -> None:
    """Write the streams after a block, then the block's file: its presence says that all is done."""
    layer, device = block.layer, job.walker.device
    chosen = [m for m in job.matrices if m.layer == layer and job.ranks.get(m.name) is not None]
    forms: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    fit = _anchored if job.config.method == "anchored" else _surveyed
    for piece in fit(job, block, chosen) if chosen else ():
        forms[piece.module] = piece.form.to_json()
        tensors |= piece.named
    targets = _run(block.original, block.inputs, block.calls, device) if job.config.two_streams else None
    if job.config.refine and chosen and targets is not None:
        task = RefineTask(block.path, forms, block.inputs_hat, targets, block.calls, block.masks)
        dtypes = {name: value.dtype for name, value in tensors.items()}
        seed = job.config.seed + layer
        tensors |= refine_block(block.compressed, task, job.config.refine, seed, dtypes, job.dtype)
    outputs = _run(block.compressed, block.inputs_hat, block.calls, device)
    _stream(job, "original", layer + 1).save(outputs if targets is None else targets)
    _stream(job, "compressed", layer + 1).save(outputs)
    job.workspace.save(probe_file(layer), {"probe": outputs[0][:1]})
    job.workspace.save(block_file(layer), tensors, {"forms": forms})


def _run(block: nn.Module, stream: Stream, calls: Sequence[Call], device: torch.device) -> list[Tensor]:
    with torch.no_grad():
        return [run_block(block, stream.batch(i, device), call).cpu() for i, call in enumerate(calls)]


def _surveyed(job: Replacement, block: _Block, chosen: Sequence[Matrix]) -> list[Piece]:
    """Factors from the survey: a prefix of the full ones."""
    full, means = job.survey.factors(block.layer), job.survey.means(block.layer)
    new = {}
    for matrix in chosen:
        rank = _rank(job, matrix)
        expand, reduce = full[matrix.name][0][:, :rank], full[matrix.name][1][:rank]
        gain = None
        if corrects_bias(job.config, matrix) and matrix.name in means:
            mean, weight = means[matrix.name], weight_of(block.original, block.path, matrix).double()
            gain = weight @ mean - expand @ (reduce @ mean)
        new[matrix.name] = Factors(expand, reduce, gain, job.config.storage)
    return _install(job, block, chosen, new)


def _anchored(job: Replacement, block: _Block, chosen: Sequence[Matrix]) -> list[Piece]:
    """Group by group in the order of computation, each fitted to what the replaced ones before it hand on."""
    pieces = []
    for key in _order(job, block, chosen):
        group = [matrix for matrix in chosen if matrix.input_key == key]
        pair = _pair_statistics(job, block, group[0])
        weights = {matrix: weight_of(block.original, block.path, matrix) for matrix in group}
        new = {m.name: _anchored_factors(job, m, weight, pair) for m, weight in weights.items()}
        pieces += _install(job, block, group, new)
    return pieces


@dataclass
class _PairStatistics:
    """Sums over tokens of original inputs x and compressed inputs h, float64: x h^T, h h^T, x, h, count."""

    cross: Tensor
    gram: Tensor
    total: Tensor
    total_hat: Tensor
    count: int = 0

    def add(self, x: Tensor, h: Tensor) -> None:
        self.cross += (x.T @ h).double()
        self.gram += (h.T @ h).double()
        self.total += x.sum(0, dtype=torch.float64)
        self.total_hat += h.sum(0, dtype=torch.float64)
        self.count += len(h)


def _anchored_factors(job: Replacement, matrix: Matrix, weight: Tensor, pair: _PairStatistics) -> Factors:
    centre = corrects_bias(job.config, matrix)
    mean, mean_hat = pair.total / pair.count, pair.total_hat / pair.count
    cross = pair.cross - torch.outer(pair.total, mean_hat) if centre else pair.cross
    gram = pair.gram - torch.outer(pair.total_hat, mean_hat) if centre else pair.gram
    ridge = ridge_for(job.config, matrix, pair.count)
    target = anchored_target(weight, cross, gram, ridge)
    outputs = output_metric(job.config, matrix, job.gradients.get(matrix.module))
    rank = _rank(job, matrix)
    expand, reduce = factors(target, basis(target, with_ridge(gram, ridge), outputs, max_rank=rank), rank)
    gain = weight.double() @ mean - expand @ (reduce @ mean_hat) if centre else None
    return Factors(expand, reduce, gain, job.config.storage)


def _rank(job: Replacement, matrix: Matrix) -> int:
    rank = job.ranks[matrix.name]
    assert rank is not None
    return rank


def _install(
    job: Replacement, block: _Block, group: Sequence[Matrix], new: Mapping[str, Factors]
) -> list[Piece]:
    """Assemble the modules of a group and put them into the compressed block."""
    pieces = []
    for module in dict.fromkeys(matrix.module for matrix in group):
        parts = [matrix for matrix in job.matrices if matrix.module == module]
        dense = block.original.get_submodule(module.removeprefix(f"{block.path}."))
        piece = assemble(dense, parts, new, job.dtype(module))
        if piece is not None:
            install_piece(block.compressed, block.path, piece, job.walker.dtype, job.walker.device)
            pieces.append(piece)
    return pieces


def _order(job: Replacement, block: _Block, chosen: Sequence[Matrix]) -> list[str]:
    """Input keys in the order in which the block reads them."""
    with torch.no_grad(), captured(block.original, block.path, chosen) as seen:
        run_block(block.original, block.inputs.batch(0, job.walker.device), block.calls[0])
    return list(seen)


def _pair_statistics(job: Replacement, block: _Block, matrix: Matrix) -> _PairStatistics:
    """Both blocks run up to the input that `matrix` reads, no further."""
    device = job.walker.device
    zeros = torch.zeros(matrix.in_features, dtype=torch.float64, device=device)
    square = zeros.new_zeros(matrix.in_features, matrix.in_features)
    pair = _PairStatistics(square, square.clone(), zeros, zeros.clone())
    for index, call in enumerate(block.calls):
        mask = None if block.masks is None else block.masks[index]
        x = _input_of(block.original, block.path, matrix, block.inputs.batch(index, device), call)
        h = _input_of(block.compressed, block.path, matrix, block.inputs_hat.batch(index, device), call)
        pair.add(rows_of(x, mask), rows_of(h, mask))
    return pair


def _input_of(block: nn.Module, path: str, matrix: Matrix, hidden: Tensor, call: Call) -> Tensor:
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Reached

    module = block.get_submodule(matrix.module.removeprefix(f"{path}."))
    with module.register_forward_pre_hook(note), suppress(Reached), torch.no_grad():
        run_block(block, hidden, call)
    return seen[0]
