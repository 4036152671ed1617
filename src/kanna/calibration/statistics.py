"""What the matrices of a block read: second moments, mean and size of their inputs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.models.matrix import Matrix


@dataclass
class InputStatistics:
    """Sums over calibration tokens x (n,), padding left out; accumulated in float64.

    Attributes:
        gram: (n, n) sum of x x^T. Products of a batch are taken in float32, their sum in float64.
        total: (n,) sum of x.
        absolute: (n,) sum of |x|.
        count: tokens.
    """

    gram: Tensor
    total: Tensor
    absolute: Tensor
    count: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device | str) -> "InputStatistics":
        zeros = torch.zeros(features, dtype=torch.float64, device=device)
        return cls(zeros.new_zeros(features, features), zeros, zeros.clone())

    def add(self, inputs: Tensor) -> None:
        """Take in a batch (tokens, n) of float32 or better."""
        self.gram += (inputs.T @ inputs).double()
        self.total += inputs.sum(0, dtype=torch.float64)
        self.absolute += inputs.abs().sum(0, dtype=torch.float64)
        self.count += len(inputs)

    @property
    def mean(self) -> Tensor:
        """(n,) mean input."""
        return self.total / self.count

    @property
    def centred_gram(self) -> Tensor:
        """(n, n) sum of (x - mean)(x - mean)^T."""
        return self.gram - torch.outer(self.total, self.mean)


def sources(matrices: Sequence[Matrix]) -> dict[str, Matrix]:
    """One matrix for every distinct input: what it reads, all of that input key read."""
    first: dict[str, Matrix] = {}
    for matrix in matrices:
        first.setdefault(matrix.input_key, matrix)
    return first


@contextmanager
def captured(block: nn.Module, block_path: str, wanted: Sequence[Matrix]) -> Iterator[dict[str, Tensor]]:
    """While active, the latest input (b, length, n) of each of `wanted`, by input key.

    Args:
        block: The module at `block_path`, which is one of ours.
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for key, matrix in sources(wanted).items():

            def note(_: nn.Module, args: tuple[Tensor, ...], key: str = key) -> None:
                seen[key] = args[0]

            module = block.get_submodule(matrix.module.removeprefix(f"{block_path}."))
            hooks.enter_context(module.register_forward_pre_hook(note))
        yield seen


def rows_of(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, n) of an input (b, length, n) or (b * length, n), padding left out.

    Args:
        mask: (b, length) bool, or None where nothing is padding.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1).to(flat.device)]
