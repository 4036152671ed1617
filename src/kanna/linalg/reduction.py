"""What is left of a matrix when components are taken away, and the controls of the same size."""

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.decomposition import decompose

MODES = ("top", "bottom", "random", "magnitude", "zero", "noise", "none")


def reduce(weight: Tensor, rank: int, mode: str = "top", *, seed: int = 0, blocks: int = 1) -> Tensor:
    """The reduced matrix (m, n), in the dtype of `weight`.

    ``top`` keeps the `rank` largest components (LASER), ``bottom`` the others. Controls: ``random`` keeps
    `rank` components drawn without replacement; ``magnitude`` keeps the largest entries, the share
    rank / min(m, n) of all; ``zero`` keeps nothing; ``noise`` is a Gaussian matrix of the norm that ``top``
    keeps; ``none`` keeps everything. A full rank is the very same tensor, and nothing is decomposed for it.

    Args:
        rank: 0 to min(m, n); with blocks, of each block.
        seed: Of random and noise.
        blocks: Contiguous blocks of rows, nearly equal, each reduced on its own.

    Raises:
        InputError: An unknown mode, a rank that does not fit, numbers that are not finite.
    """
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}", f"choose {', '.join(MODES)}")
    if blocks > 1:
        parts = [weight[rows] for rows in row_blocks(weight.shape[0], blocks)]
        return torch.cat([reduce(part, min(rank, *part.shape), mode, seed=seed) for part in parts])
    full = min(weight.shape)
    if not 0 <= rank <= full:
        raise InputError(f"rank {rank} does not fit a matrix of shape {tuple(weight.shape)}", f"0 to {full}")
    if mode == "none" or (rank == full and mode in ("top", "random", "magnitude")):
        return weight
    if mode == "zero" or (rank == 0 and mode != "bottom") or (rank == full and mode == "bottom"):
        return torch.zeros_like(weight)
    if rank == 0:
        return weight
    if mode == "magnitude":
        return _largest_entries(weight, rank / full)
    parts_of_weight = decompose(weight)
    generator = torch.Generator().manual_seed(seed)
    if mode == "random":
        chosen = torch.randperm(full, generator=generator)[:rank].sort().values.tolist()
        return parts_of_weight.between(chosen).to(weight.dtype)
    if mode == "noise":
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        return (noise * (parts_of_weight.values[:rank].norm() / noise.norm())).to(weight.dtype)
    found = parts_of_weight.top(rank) if mode == "top" else parts_of_weight.bottom(rank)
    return found.to(weight.dtype)


def row_blocks(rows: int, blocks: int) -> list[slice]:
    """Contiguous blocks of nearly equal size that cover all rows; never more blocks than rows."""
    count = min(blocks, rows)
    bounds = [rows * i // count for i in range(count + 1)]
    return [slice(bounds[i], bounds[i + 1]) for i in range(count)]


def _largest_entries(weight: Tensor, share: float) -> Tensor:
    """The matrix with all but its largest entries set to zero."""
    kept = round(share * weight.numel())
    flat = weight.flatten()
    order = flat.abs().float().argsort(descending=True, stable=True)[:kept]
    result = torch.zeros_like(flat)
    result[order] = flat[order]
    return result.reshape(weight.shape)
