"""Factors that the weights alone decide, for models that are not run while they are compressed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.linalg.whitening import basis, factors
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.replace import block_file
from kanna.models.matrix import Matrix
from kanna.runs.assemble import Factors, Piece, assemble
from kanna.runs.source import Source
from kanna.runs.step import Job


def replace_unrun(job: Job, plan: Plan) -> None:
    """Save the truncated matrices of every block; what is there already is not redone."""
    count = len(plan.inventory.blocks)
    for layer in range(count):
        job.progress("replace", layer, count)
        if job.workspace.has(block_file(layer)):
            continue
        pieces = _pieces(job.source, plan, layer)
        tensors: dict[str, Tensor] = {}
        for piece in pieces:
            tensors |= piece.named
        forms = {piece.module: piece.form.to_json() for piece in pieces}
        job.workspace.save(block_file(layer), tensors, {"forms": forms})
    job.progress("replace", count, count)


def _pieces(source: Source, plan: Plan, layer: int) -> list[Piece]:
    ranks = plan.ranks or {}
    chosen = [m for m in plan.selected if m.layer == layer and ranks[m.name] is not None]
    found = []
    for path in dict.fromkeys(matrix.module for matrix in chosen):
        parts = [matrix for matrix in plan.inventory.matrices if matrix.module == path]
        new = _truncated(source, plan, [matrix for matrix in chosen if matrix.module == path])
        piece = assemble(source.module(path), parts, new, source.dtype(path))
        assert piece is not None
        found.append(piece)
    return found


def _truncated(source: Source, plan: Plan, chosen: Sequence[Matrix]) -> dict[str, Factors | Tensor]:
    """Matrix name -> the factors of its truncated SVD."""
    new: dict[str, Factors | Tensor] = {}
    for matrix in chosen:
        rank = (plan.ranks or {})[matrix.name]
        assert rank is not None
        weight = source.weight(matrix).to(torch.float32)
        expand, reduce = factors(weight, basis(weight, None, None), rank)
        new[matrix.name] = Factors(expand, reduce, None, plan.config.storage)
    return new
