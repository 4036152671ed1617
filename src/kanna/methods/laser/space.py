"""Which edits a search may try, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.methods.laser.edits import spell
from kanna.methods.laser.ranks import block_ranks
from kanna.models.matrix import Matrix, role_key


@dataclass(frozen=True)
class Candidate:
    """One edit of one matrix.

    Args:
        matrix: Which.
        rho: Share of its largest rank, as given.
        rank: What that means; with blocks, of each block.
        blocks: Row blocks truncated each on its own.
        edit: As `parse_edit` reads it.
    """

    matrix: Matrix
    rho: str
    rank: int
    blocks: int
    edit: str

    @property
    def key(self) -> str:
        """Unique within a search."""
        return self.edit if self.blocks == 1 else f"{self.edit}/{self.blocks}"


def space(
    matrices: Sequence[Matrix], every: Sequence[Matrix], rhos: Sequence[str], blocks: Sequence[int]
) -> list[Candidate]:
    """All candidates: feed-forward matrices first, the last layers first, then roles and rho in order.

    That order is the one in which a budget is spent: most gains of the paper lie in late feed-forward layers.

    Args:
        matrices: Those to be reduced.
        every: All of the model, to spell edits without ambiguity.
    """
    ordered = sorted(
        matrices,
        key=lambda matrix: (matrix.group != "mlp", -matrix.layer, role_key(matrix.role), matrix.name),
    )
    return [
        Candidate(matrix, rho, min(block_ranks(rho, *matrix.shape, count)), count, spell(matrix, every, rho))
        for matrix in ordered
        for rho in rhos
        for count in blocks
    ]
