"""The second pass: replace the chosen matrices, block by block.

`whitened`, `plain`, `asvd`, `fwsvd` take their factors from the survey. `anchored` walks two streams, the
hidden states of the original and of the compressed model, and fits each group of matrices that read the
same input, in the order in which the block computes them, to the original outputs (arXiv 2604.02119):

    W* = W (G_xh + lam I)(G_hh + lam I)^-1,   then the rank-k optimum of W* under G_hh
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.calibration.side_by_side import PairStatistics, Sides, Walk, in_order, pair_statistics, run_block
from kanna.calibration.statistics import centred
from kanna.calibration.walker import Walker
from kanna.linalg.allocation import Ranks
from kanna.linalg.whitening import anchored_target, basis, factors, is_zero, with_ridge
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients
from kanna.methods.lowrank.metric import corrects_bias, output_metric, ridge_for
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.refine import RefineTask, refine_block
from kanna.methods.lowrank.survey import Survey, weight_of
from kanna.models.matrix import Matrix
from kanna.progress import Progress
from kanna.runs.assemble import Factors, Piece, assemble, install_piece
from kanna.runs.blocks import block_file, first_open, probe_file, restore, streams
from kanna.runs.workspace import Workspace


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


def replace_blocks(job: Replacement, progress: Progress) -> None:
    """Compute and save every block; blocks that are saved already are not redone."""
    count, visits = len(job.walker.inventory.blocks), job.walker.visits
    start = first_open(job.workspace, count)
    if start == count:
        return
    # What needs no stream of its own is run through once, as the probe.
    windows = job.plan.windows if job.config.two_streams else job.plan.windows.first(1)
    batches = job.walker.batches(windows, windows.at_once(job.config.batch))
    blocks: dict[int, Sides] = {}
    with job.walker.walk(batches, streams(job.workspace), start) as (original, compressed):
        walk = Walk(original, compressed, [mask for _, mask in batches])
        while compressed.visit < len(visits):
            layer = visits[compressed.visit]
            progress("replace", min(layer, count - 1), count)
            block = blocks.pop(layer, None) or _begun(job, walk, layer)
            _pass(job, walk, block)
            if layer in visits[compressed.visit :]:
                blocks[layer] = block
            else:
                job.workspace.save(block_file(layer), block.tensors, {"forms": block.forms})
            for passage in (original, compressed):
                passage.forget()
    progress("replace", count, count)


def _begun(job: Replacement, walk: Walk, layer: int) -> Sides:
    """A block with its matrices replaced: now, or by an earlier run that was killed."""
    original, path = job.walker.load(layer), job.walker.inventory.blocks[layer]
    block = Sides(layer, path, original, copy.deepcopy(original))
    if job.workspace.has(block_file(layer)):
        _restore(job, block)
        return block
    chosen = [m for m in job.matrices if m.layer == layer and job.ranks.get(m.name) is not None]
    if not chosen:
        return block
    anchored = job.config.method == "anchored" and layer not in job.walker.trial.repeated
    pieces = _anchored(job, walk, block, chosen) if anchored else _surveyed(job, block, chosen)
    for piece in pieces:
        block.forms[piece.module] = piece.form.to_json()
        block.tensors |= piece.named
    return block


def _pass(job: Replacement, walk: Walk, block: Sides) -> None:
    """Run a block on all batches, write what is behind it; the next block is at hand then."""
    visit = walk.compressed.visit
    targets = run_block(block.original, walk.original) if job.config.two_streams else None
    done = job.workspace.has(block_file(block.layer))
    if job.config.refine and block.forms and targets is not None and not done:
        task = RefineTask(block.path, block.forms, walk.compressed, targets, walk.masks)
        dtypes = {name: value.dtype for name, value in block.tensors.items()}
        seed = job.config.seed + block.layer
        block.tensors |= refine_block(block.compressed, task, job.config.refine, seed, dtypes, job.dtype)
    outputs = run_block(block.compressed, walk.compressed, None if targets is not None else walk.original)
    for passage in (walk.original, walk.compressed):
        passage.turn()
    # Where blocks are not run row by row, the first window is a batch of its own.
    first = outputs[0] if job.walker.trial.irregular else outputs[0][:1]
    job.workspace.save(probe_file(visit), {"probe": first})


def _restore(job: Replacement, block: Sides) -> None:
    """Put into a block what an earlier run wrote of it."""
    rest = restore(job.workspace, block, job.matrices, job.walker)
    for key, value in rest.items():  # what refinement trained beside them
        parameter = block.compressed.get_parameter(key.removeprefix(f"{block.path}."))
        parameter.copy_(value)


def _surveyed(job: Replacement, block: Sides, chosen: Sequence[Matrix]) -> list[Piece]:
    """Factors from the survey: a prefix of the full ones."""
    full, means = job.survey.factors(block.layer), job.survey.means(block.layer)
    new = {}
    for matrix in chosen:
        rank = _rank(job, matrix)
        expand, reduce = full[matrix.name][0][:, :rank], full[matrix.name][1][:rank]
        gain = None
        if corrects_bias(job.config, matrix) and matrix.name in means:
            weight = weight_of(block.original, block.path, matrix).double().to(expand.device)
            mean = means[matrix.name]
            gain = weight @ mean - expand @ (reduce @ mean)
        new[matrix.name] = Factors(expand, reduce, gain, job.config.storage)
    return _install(job, block, chosen, new)


def _anchored(job: Replacement, walk: Walk, block: Sides, chosen: Sequence[Matrix]) -> list[Piece]:
    """Group by group in the order of computation, each fitted to what the replaced ones before it hand on."""
    pieces = []
    for modules, calls in in_order(walk, block, [matrix.module for matrix in chosen]):
        group = [matrix for matrix in chosen if matrix.module in modules]
        features = group[0].in_features
        pair = pair_statistics(walk, block, group[0].module, features, calls, job.walker.device)
        weights = {matrix: weight_of(block.original, block.path, matrix) for matrix in group}
        new = {m.name: _anchored_factors(job, m, weight, pair) for m, weight in weights.items()}
        pieces += _install(job, block, group, new)
    return pieces


def _anchored_factors(job: Replacement, matrix: Matrix, weight: Tensor, pair: PairStatistics) -> Factors:
    centre = corrects_bias(job.config, matrix)
    mean, mean_hat = pair.total / pair.count, pair.total_hat / pair.count
    gram = centred(pair.gram, pair.total_hat, mean_hat) if centre else pair.gram
    cross = pair.cross - torch.outer(pair.total, mean_hat) if centre else pair.cross
    if is_zero(gram):
        cross = gram  # inputs that never vary say nothing of what the weight should become
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
    job: Replacement, block: Sides, group: Sequence[Matrix], new: Mapping[str, Factors]
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
