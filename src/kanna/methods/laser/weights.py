"""New weights for matrices of a loaded model, each matrix decomposed once."""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kanna.linalg.decomposition import Decomposition, decompose
from kanna.linalg.reduction import reduce
from kanna.methods.laser.space import Candidate
from kanna.models.matrix import Matrix
from kanna.models.views import read, write
from kanna.tasks.scorers.resumed import Edit


class Weights:
    """Reduced weights, rounded as the files would hold them.

    Args:
        model: Whose parameters are as loaded.
        stored: Dtype of a matrix in the files; what is tried is what would be saved.
        limit: Bytes of decompositions kept, the least recently used going first, and of edits made at a time.
    """

    def __init__(self, model: nn.Module, stored: Callable[[Matrix], torch.dtype], limit: int = 2**30) -> None:
        self._model, self._stored, self._limit = model, stored, limit
        self._kept: OrderedDict[str, Decomposition] = OrderedDict()
        self.decompositions = 0

    def weight(self, matrix: Matrix) -> Tensor:
        """The matrix (m, n) as it is."""
        return read(self._model.get_parameter(matrix.tensor).detach(), matrix.view)

    def decomposition(self, matrix: Matrix) -> Decomposition:
        """Of the matrix as it is."""
        if matrix.name in self._kept:
            self._kept.move_to_end(matrix.name)
            return self._kept[matrix.name]
        parts = decompose(self.weight(matrix))
        self.decompositions += 1
        self._kept[matrix.name] = parts
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self._limit:
            self._kept.popitem(last=False)
        return parts

    def edits(self, candidates: Sequence[Candidate], mode: str = "top", seed: int = 0) -> list[Edit]:
        """Edits of these candidates put in together; matrices that share a parameter become one edit."""
        values: dict[str, Tensor] = {}
        matrices: dict[str, Matrix] = {}
        for candidate in candidates:
            matrix = candidate.matrix
            old = values.get(matrix.tensor)
            parameter = self._model.get_parameter(matrix.tensor).detach() if old is None else old
            values[matrix.tensor] = write(parameter, matrix.view, self._reduced(candidate, mode, seed))
            matrices[matrix.tensor] = matrix
        return [
            Edit(matrix.module, matrix.parameter, values[name], matrix.layer)
            for name, matrix in matrices.items()
        ]

    def chunks(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """As many candidates at a time as have edits that fit in the limit; at least one."""
        chunk: list[Candidate] = []
        size = 0
        for candidate in candidates:
            more = self._model.get_parameter(candidate.matrix.tensor).nbytes
            if chunk and size + more > self._limit:
                yield chunk
                chunk, size = [], 0
            chunk.append(candidate)
            size += more
        if chunk:
            yield chunk

    def _reduced(self, candidate: Candidate, mode: str, seed: int) -> Tensor:
        matrix, rank, blocks = candidate.matrix, candidate.rank, candidate.blocks
        weight = self.weight(matrix).to(self._stored(matrix))  # exact, where it was loaded from there
        needed = mode != "magnitude" and blocks == 1 and 0 < rank < min(matrix.shape)
        parts = self.decomposition(matrix) if needed else None
        return reduce(weight, rank, mode, seed=seed_of(seed, matrix), blocks=blocks, parts=parts)


def seed_of(seed: int, matrix: Matrix) -> int:
    """A seed of its own for each matrix: equal shapes must not draw equal components."""
    return seed + zlib.crc32(matrix.name.encode())


def _bytes(parts: Decomposition) -> int:
    return 8 * (parts.left.numel() + parts.values.numel() + parts.right.numel())
