"""Whole numbers with calibration text, block by block, in the order in which a block computes.

For each matrix, with x what it reads in the original model, x^ what it reads behind the quantised part, and
G = sum x^ x^^T (`inputs: anchored`; with `original` x^ is x and W* is W):

    W* = W (G_xx^ + lam I)(G + lam I)^-1      what maps x^ to the original outputs   (`linalg.whitening`)
    grid                                      of `minmax` or `mse`, row by row the better under G
    codes                                     of W* by gptq under G
    scales                                    the best for these codes under G   (`refit`)

Of factors E R, first R so, and then E with what the quantised R hands on. (The objective is that of Qronos,
arXiv 2505.11695.)
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kanna.calibration.side_by_side import Sides, Walk, in_order, pair_statistics, run_block
from kanna.calibration.statistics import InputStatistics, inputs_of, rows_of
from kanna.calibration.walker import Walker
from kanna.forms import LowRank
from kanna.linalg.whitening import anchored_target, is_zero
from kanna.methods.quantize.execute import (
    Loss,
    check_numbers,
    on_cpu,
    relative_error,
    rounded_alone,
    weight_of,
)
from kanna.methods.quantize.plan import Plan
from kanna.models.matrix import Matrix
from kanna.quant.gptq import better_of, gptq, output_error, refit
from kanna.quant.grid import Codes
from kanna.runs.assemble import (
    Factors,
    New,
    assemble,
    factors_of,
    install_piece,
    matrix_weight,
)
from kanna.runs.blocks import block_file, first_open, probe_file, restore, streams
from kanna.runs.step import Job


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of what a matrix reads.

    Args:
        cross: (n, n) sum of x x^^T.
        gram: (n, n) sum of x^ x^^T.
    """

    cross: Tensor
    gram: Tensor

    def behind(self, before: Tensor, now: Tensor) -> "Moments":
        """Of what lies behind the factor `before` (k, n) in the original, and `now` in the new model."""
        before, now = before.double(), now.double()
        return Moments(before @ self.cross @ now.T, now @ self.gram @ now.T)


@dataclass(frozen=True)
class _Work:
    job: Job
    plan: Plan
    walker: Walker

    @property
    def anchored(self) -> bool:
        return self.plan.config.inputs == "anchored"


def quantise_blocks(job: Job, plan: Plan) -> int:
    """Write one file a block, those that are there already left as they are; how often blocks were run."""
    assert plan.windows is not None and plan.tried is not None
    walker = Walker(job.source.checkpoint, plan.inventory, job.inputs.device, trial=plan.tried)
    work = _Work(job, plan, walker)
    count, visits = len(plan.inventory.blocks), walker.visits
    start = first_open(job.workspace, count)
    if start == count:
        return len(visits)
    batches = walker.batches(plan.windows, plan.config.batch)
    blocks: dict[int, Sides] = {}
    with walker.walk(batches, streams(job.workspace), start) as (original, compressed):
        walk = Walk(original, compressed, [mask for _, mask in batches])
        while compressed.visit < len(visits):
            layer = visits[compressed.visit]
            job.progress("quantize", min(layer, count - 1), count)
            sides = blocks.pop(layer, None) or _begun(work, walk, layer)
            if layer in visits[compressed.visit + 1 :]:
                blocks[layer] = sides
            _pass(work, walk, sides)
            for passage in (original, compressed):
                passage.forget()
    job.progress("quantize", count, count)
    return len(visits)


def tensors_of_blocks(job: Job, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """Full parameter name -> tensor, one block in memory at a time."""
    for layer in range(len(plan.inventory.blocks)):
        yield from job.workspace.load(block_file(layer)).items()


def losses_of_blocks(job: Job, plan: Plan) -> dict[str, Loss]:
    """By matrix name."""
    notes = [job.workspace.note(block_file(layer)) for layer in range(len(plan.inventory.blocks))]
    return {matrix: Loss(*found) for note in notes for matrix, found in note["losses"].items()}


def _begun(work: _Work, walk: Walk, layer: int) -> Sides:
    """A block with its matrices quantised: now, or by an earlier run that was killed."""
    original, path = work.walker.load(layer), work.plan.inventory.blocks[layer]
    sides = Sides(layer, path, original, copy.deepcopy(original))
    workspace, name = work.job.workspace, block_file(layer)
    if workspace.has(name):
        restore(workspace, sides, work.plan.inventory.matrices, work.walker)
        return sides
    losses = _quantised_block(work, walk, sides)
    note = {"forms": sides.forms, "losses": {m: [loss.error, loss.outputs] for m, loss in losses.items()}}
    workspace.save(name, sides.tensors, note)
    return sides


def _pass(work: _Work, walk: Walk, sides: Sides) -> None:
    """Run both blocks on all batches; the next block is at hand then."""
    visit = walk.compressed.visit
    run_block(sides.original, walk.original)
    outputs = run_block(sides.compressed, walk.compressed)
    for passage in (walk.original, walk.compressed):
        passage.turn()
    first = outputs[0] if work.walker.trial.irregular else outputs[0][:1]
    work.job.workspace.save(probe_file(visit), {"probe": first})


def _quantised_block(work: _Work, walk: Walk, sides: Sides) -> dict[str, Loss]:
    """Group by group in the order of computation; what is never called, or again, by its weights alone."""
    chosen = [m for m in work.plan.selected if m.layer == sides.layer]
    losses: dict[str, Loss] = {}
    once = [] if sides.layer in work.walker.trial.repeated else chosen
    reached = in_order(walk, sides, [m.module for m in once]) if once else []
    for modules, calls in reached:
        group = [matrix for matrix in chosen if matrix.module in modules]
        moments = _moments(work, walk, sides, group[0], calls)
        _replace(work, sides, group, partial(_fitted, work, moments), losses)
    seen = {path for modules, _ in reached for path in modules}
    rest = [matrix for matrix in chosen if matrix.module not in seen]
    _replace(work, sides, rest, partial(_alone, work), losses)
    return losses


def _moments(work: _Work, walk: Walk, sides: Sides, matrix: Matrix, calls: int) -> Moments:
    """Of what a matrix reads; without anchoring only the original is run."""
    device = work.walker.device
    if work.anchored:
        pair = pair_statistics(walk, sides, matrix.module, matrix.in_features, calls, device)
        return Moments(pair.cross, pair.gram)
    sums = InputStatistics.empty(matrix.in_features, device)
    for index, mask in enumerate(walk.masks):
        call = walk.original.call(index)
        for inputs in inputs_of(sides.original, sides.path, matrix.module, call, calls):
            sums.add(rows_of(inputs, mask))
    return Moments(sums.gram, sums.gram)


def _replace(
    work: _Work,
    sides: Sides,
    matrices: Sequence[Matrix],
    quantised: Callable[[nn.Module, Matrix], tuple[New, Loss]],
    losses: dict[str, Loss],
) -> None:
    """Put whole numbers in place of some matrices of the block, module by module."""
    for path in dict.fromkeys(matrix.module for matrix in matrices):
        held = sides.original.get_submodule(path.removeprefix(f"{sides.path}."))
        new: dict[str, New] = {}
        for matrix in (m for m in matrices if m.module == path):
            new[matrix.name], losses[matrix.name] = quantised(held, matrix)
        piece = assemble(held, work.plan.parts(path), new, work.job.source.dtype(path))
        assert piece is not None
        install_piece(sides.compressed, sides.path, piece, work.walker.dtype, work.walker.device)
        sides.forms[path] = piece.form.to_json()
        sides.tensors |= piece.named


def _fitted(work: _Work, moments: Moments, module: nn.Module, matrix: Matrix) -> tuple[New, Loss]:
    """A matrix with statistics of what it reads."""
    weight = matrix_weight(module, matrix.view)
    check_numbers(weight, matrix)
    new: New
    if isinstance(work.plan.stored[matrix.name], LowRank):
        expand, reduce = factors_of(module, matrix)
        inner = _best_codes(work, matrix, reduce, moments)
        new = Factors(_best_codes(work, matrix, expand, moments.behind(reduce, inner.weight)), inner)
    else:
        new = _best_codes(work, matrix, weight, moments)
    after = weight_of(new)
    size = float(output_error(weight, torch.zeros_like(weight), moments.gram).sum())
    off = float(output_error(weight, after.to(weight.device), moments.gram).sum())
    return _stored(new), Loss(
        relative_error(weight, after.to(weight.device)), (off / size) ** 0.5 if size else 0.0
    )


def _best_codes(work: _Work, matrix: Matrix, weight: Tensor, moments: Moments) -> Codes:
    gram, grid = moments.gram, work.plan.grids[matrix.name]
    if is_zero(gram):  # it reads nothing but zeros
        return better_of(weight, grid, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    target = weight.double()
    if work.anchored:
        target = anchored_target(weight, moments.cross, gram, work.plan.config.ridge)
    codes = gptq(target, gram, better_of(target, grid, gram))
    return refit(target, gram, codes) if work.plan.config.refit else codes


def _alone(work: _Work, module: nn.Module, matrix: Matrix) -> tuple[New, Loss]:
    """A matrix of which nothing is known but its weights."""
    weight = matrix_weight(module, matrix.view)
    check_numbers(weight, matrix)
    new: New
    if isinstance(work.plan.stored[matrix.name], LowRank):
        expand, reduce = factors_of(module, matrix)
        new = Factors(rounded_alone(expand, work.plan, matrix), rounded_alone(reduce, work.plan, matrix))
    else:
        new = rounded_alone(weight, work.plan, matrix)
    return new, Loss(relative_error(weight, weight_of(new).to(weight.device)))


def _stored(new: New) -> New:
    """On the CPU, where it is written from."""
    if isinstance(new, Factors):
        expand, reduce = new.expand, new.reduce
        assert isinstance(expand, Codes) and isinstance(reduce, Codes)
        return Factors(on_cpu(expand), on_cpu(reduce))
    assert isinstance(new, Codes)
    return on_cpu(new)
