"""What is left of a matrix when components are taken away, and the controls of the same size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.decomposition import Decomposition, check_finite_matrix, decompose

MODES = ("top", "bottom", "random", "magnitude", "zero", "noise", "none")


def reduce(
    weight: Tensor,
    rank: int | Sequence[int],
    mode: str = "top",
    *,
    seed: int = 0,
    blocks: int = 1,
    parts: Decomposition | None = None,
) -> Tensor:
    """A matrix W (m, n) of which `rank` components are kept, in the dtype of `weight`.

        mode         keeps                                                      rank 0   full rank
        top          the `rank` largest components                              zeros    W
        bottom       the others, from index `rank` on                           W        zeros
        random       `rank` components drawn without replacement                zeros    W
        magnitude    the entries of largest size, the share rank / min(m, n)    zeros    W
        noise        independent Gaussian entries of the norm that top keeps    zeros    W
        zero         nothing, at any rank                                       zeros    zeros
        none         everything, at any rank                                    W        W

    Where the table says W the result is the very same tensor; at both ends nothing is decomposed.
    All arithmetic is float64, on the device of `weight`; draws are the same on every device.

    Args:
        rank: 0 to min(m, n). With blocks, of every block, and all of a block that has no more; or one rank
            per block, as `block_ranks` gives them.
        seed: Of random and noise.
        blocks: Contiguous blocks of rows (`row_blocks`), each reduced on its own; one is the plain method.
        parts: The decomposition of `weight` if it is at hand; only for one block.

    Raises:
        InputError: An unknown mode, a rank that does not fit, a weight that is no finite floating-point
            matrix, or a result too large for its dtype.
    """
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}", f"choose {', '.join(MODES)}")
    if mode == "none":
        return weight
    generator = torch.Generator().manual_seed(seed)
    if blocks == 1:
        return _reduced(weight, _single(rank), mode, generator, parts)
    rows = row_blocks(len(weight), blocks)
    ranks = _per_block(rank, rows, weight.shape[1])
    pieces = [weight[block] for block in rows]
    kept = [_reduced(piece, k, mode, generator) for piece, k in zip(pieces, ranks, strict=True)]
    unchanged = all(part is piece for part, piece in zip(kept, pieces, strict=True))
    return weight if unchanged else torch.cat(kept)


def row_blocks(rows: int, blocks: int) -> list[slice]:
    """Contiguous blocks that cover all rows and differ by one row at most.

    Raises:
        InputError: Fewer than one block, or more blocks than rows.
    """
    if not 1 <= blocks <= rows:
        raise InputError(f"{rows} rows cannot be cut into {blocks} blocks", f"ask for 1 to {rows}")
    bounds = [rows * i // blocks for i in range(blocks + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _single(rank: int | Sequence[int]) -> int:
    if isinstance(rank, int):
        return rank
    if len(rank) != 1:
        raise InputError(f"{len(rank)} ranks were given for one block")
    return rank[0]


def _per_block(rank: int | Sequence[int], rows: Sequence[slice], columns: int) -> list[int]:
    if isinstance(rank, int):
        return [min(rank, block.stop - block.start, columns) for block in rows]
    if len(rank) != len(rows):
        raise InputError(f"{len(rank)} ranks were given for {len(rows)} blocks")
    return list(rank)


def _reduced(
    weight: Tensor, rank: int, mode: str, generator: torch.Generator, parts: Decomposition | None = None
) -> Tensor:
    full = min(weight.shape)
    if not 0 <= rank <= full:
        raise InputError(
            f"rank {rank} does not fit a matrix of shape {tuple(weight.shape)}", f"ask for 0 to {full}"
        )
    if mode != "zero" and rank == (0 if mode == "bottom" else full):
        return weight
    if mode == "zero" or rank in (0, full):
        return torch.zeros_like(weight)
    if mode == "magnitude":
        return _largest_entries(weight, rank)
    parts = decompose(weight) if parts is None else parts
    kept = _combined(weight, parts, rank, mode, generator).to(weight.dtype)
    if not bool(torch.isfinite(kept).all()):
        raise InputError(
            f"a weight of {weight.dtype} reduced to rank {rank} holds numbers too large for that type",
            "store the model in bfloat16 or float32",
        )
    return kept


def _combined(
    weight: Tensor, parts: Decomposition, rank: int, mode: str, generator: torch.Generator
) -> Tensor:
    """The reduced matrix in float64, for ranks between 0 and full."""
    if mode == "top":
        return parts.top(rank)
    if mode == "bottom":
        return parts.bottom(rank)
    if mode == "random":
        return parts.between(torch.randperm(len(parts.values), generator=generator)[:rank].sort().values)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    return noise * (parts.values[:rank].norm() / noise.norm())


def _largest_entries(weight: Tensor, rank: int) -> Tensor:
    """W with exactly rank * max(m, n) of its entries kept, the largest; among equal ones the first."""
    check_finite_matrix(weight)
    sizes = weight.detach().abs().flatten()
    sizes = sizes if sizes.dtype == torch.float64 else sizes.float()
    kept = rank * max(weight.shape)
    threshold = sizes.kthvalue(len(sizes) - kept + 1).values
    chosen = sizes > threshold
    equal = (sizes == threshold).nonzero().flatten()
    chosen[equal[: kept - int(chosen.sum())]] = True
    return torch.where(chosen.reshape(weight.shape), weight.detach(), 0)
