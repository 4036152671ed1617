"""What the matrices of a block read: second moments, mean and size of their inputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kanna.calibration.calls import Call
from kanna.calibration.passage import Reached

# Products are taken in float32: of inputs that do not vary, less than this share of their squares is left.
ROUNDING = 1e-6
# Rows of a sum of products that are multiplied at a time.
_PANEL = 1024


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

    def copy(self) -> "InputStatistics":
        """The same sums, apart from these."""
        return InputStatistics(self.gram.clone(), self.total.clone(), self.absolute.clone(), self.count)

    def add(self, inputs: Tensor) -> None:
        """Take in a batch (tokens, n) of float32 or better."""
        add_products(self.gram, inputs)
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
        return centred(self.gram, self.total, self.mean)


def add_products(gram: Tensor, rows: Tensor) -> None:
    """gram += rows^T rows, of which only the blocks on and above the diagonal are multiplied.

    Args:
        gram: (n, n) float64, symmetric; changed.
        rows: (tokens, n) float32 or better. Their products are taken in its dtype.
    """
    for start in range(0, len(gram), _PANEL):
        end = min(start + _PANEL, len(gram))
        product = rows[:, start:end].T @ rows[:, start:]
        gram[start:end, start:] += product
        gram[end:, start:end] += product[:, end - start :].T


def centred(products: Tensor, total: Tensor, mean: Tensor) -> Tensor:
    """(n, n) sum of (x - mean x)(h - mean h)^T from the sum of x h^T; zero where only rounding is left of it.

    Args:
        products: sum of x h^T.
        total: sum of x.
        mean: mean h.
    """
    rest = products - torch.outer(total, mean)
    return rest if float(rest.trace()) > ROUNDING * float(products.trace()) else torch.zeros_like(rest)


@dataclass
class Reads:
    """Statistics of what modules read, by path: modules that read the same in every call share theirs.

    Which do is not known from their names: it is seen in each batch which were handed the same tensors.
    """

    of: dict[str, InputStatistics] = field(default_factory=dict)

    def add(self, seen: Mapping[str, Sequence[Tensor]], mask: Tensor | None) -> None:
        """Take in a batch.

        Args:
            seen: What each module read, call by call.
            mask: (b, length) bool, or None where nothing is padding.
        """
        for paths in together(seen):
            calls = [rows_of(inputs, mask) for inputs in seen[paths[0]]]
            for sums in self._shared(paths, calls[0]):
                for rows in calls:
                    sums.add(rows)

    def _shared(self, paths: Sequence[str], rows: Tensor) -> list[InputStatistics]:
        """The distinct sums of modules that read the same now; those of modules that do not are parted."""
        distinct: dict[int, InputStatistics] = {}
        for path in paths:
            held = self.of.get(path)
            if held is None or any(sums is held and other not in paths for other, sums in self.of.items()):
                apart = InputStatistics.empty(rows.shape[1], rows.device) if held is None else held.copy()
                self.of.update({other: apart for other in paths if self.of.get(other) is held})
            distinct[id(self.of[path])] = self.of[path]
        return list(distinct.values())


def together(seen: Mapping[str, Sequence[Tensor]]) -> list[list[str]]:
    """Modules grouped by what they read, the very same tensors in the same order; by their first run."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, inputs in seen.items():
        groups.setdefault(tuple(map(id, inputs)), []).append(path)
    return list(groups.values())


@contextmanager
def captured(block: nn.Module, block_path: str, wanted: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While active, what each of the modules `wanted` reads, call by call, in the order of their first calls.

    Whoever runs the block clears it between runs.

    Args:
        block: The module at `block_path`, which is one of ours.
        wanted: Full paths.
    """
    seen: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for path in dict.fromkeys(wanted):

            def note(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                seen.setdefault(path, []).append(args[0])

            module = block.get_submodule(path.removeprefix(f"{block_path}."))
            hooks.enter_context(module.register_forward_pre_hook(note))
        yield seen


@contextmanager
def gathered(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, InputStatistics]]:
    """While active, sums over all that modules of a model read, by path; nothing that runs may be padding."""
    found: dict[str, InputStatistics] = {}
    with ExitStack() as hooks:
        for path in paths:

            def note(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                rows = rows_of(args[0], None).float()
                found.setdefault(path, InputStatistics.empty(rows.shape[1], rows.device)).add(rows)

            hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(note))
        yield found


def inputs_of(block: nn.Module, block_path: str, module: str, call: Call, most: int) -> list[Tensor]:
    """What one module reads in a run of a block that ends with the `most`-th of its inputs."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        if len(seen) == most:
            raise Reached

    reader = block.get_submodule(module.removeprefix(f"{block_path}."))
    with reader.register_forward_pre_hook(note), suppress(Reached), torch.no_grad():
        call.run(block)
    return seen


def rows_of(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, n) of an input (b, length, n) or (b * length, n), padding left out.

    Args:
        mask: (b, length) bool, or None where nothing is padding.
    """
    flat = inputs.detach().reshape(-1, inputs.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1).to(flat.device)]
