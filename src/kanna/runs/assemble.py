"""From the factors of matrices to the form and tensors of a module, and the module in a loaded block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.forms import Dense, Form, LowRank, Pivot, Rows, install
from kanna.linalg.pivot import pivot_factors
from kanna.linalg.whitening import balanced
from kanna.models.matrix import Matrix
from kanna.models.views import read


@dataclass(frozen=True)
class Factors:
    """W' = expand (m, k) @ reduce (k, n), and what its bias gains (m,) or None."""

    expand: Tensor
    reduce: Tensor
    bias_gain: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """One replaced module.

    Args:
        module: Path in the class of `architectures[0]`.
        form: Its form.
        tensors: Suffix -> tensor in the dtype that will be stored.
        shape: (m, n) of the whole module.
    """

    module: str
    form: Form
    tensors: dict[str, Tensor]
    shape: tuple[int, int]

    @property
    def named(self) -> dict[str, Tensor]:
        """Full parameter names -> tensors."""
        return {f"{self.module}.{suffix}": tensor for suffix, tensor in self.tensors.items()}


def assemble(
    module: nn.Module,
    parts: Sequence[Matrix],
    factors: Mapping[str, Factors],
    storage: str,
    dtype: torch.dtype,
) -> Piece | None:
    """The module that holds `parts` with those that have factors replaced; None if none has.

    Args:
        module: The dense one, in a loaded block.
        parts: All matrices of that module, in the order of their rows.
        factors: By matrix name; a part without stays dense.
        storage: "pair" or "pivot".
        dtype: Of what is stored.
    """
    if not any(part.name in factors for part in parts):
        return None
    bias = _new_bias(module, parts, factors)
    bias = None if bias is None else bias.to(dtype)
    first = parts[0]
    if first.view.rows is None:
        form, tensors = _single(factors[first.name], storage, dtype, bias)
        return Piece(first.module, form, tensors, first.shape)
    return _fused(module, parts, factors, storage, dtype, bias)


def build(piece: Piece, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The module of a piece with its stored values, for computing in `dtype`."""
    m, n = piece.shape
    bias = piece.form.bias_suffix in piece.tensors
    # Never filled at random, which would take numbers from the generator of whoever calls.
    module = piece.form.build(m, n, bias, dtype, torch.device("meta")).to_empty(device=device)
    with torch.no_grad():
        module.load_state_dict({name: value.to(device) for name, value in piece.tensors.items()})
    return module.eval().requires_grad_(False)


def install_piece(
    block: nn.Module, path: str, piece: Piece, dtype: torch.dtype, device: torch.device
) -> None:
    """Put a piece's module into the block at `path`, which is one of ours."""
    install(block, piece.module.removeprefix(f"{path}."), build(piece, dtype, device))


def _single(
    factors: Factors, storage: str, dtype: torch.dtype, bias: Tensor | None
) -> tuple[Form, dict[str, Tensor]]:
    rank = factors.reduce.shape[0]
    if storage == "pivot":
        order, chosen, mix = pivot_factors(factors.expand, factors.reduce)
        return Pivot(rank), Pivot(rank).pack(order.int(), chosen.to(dtype), mix.to(dtype), bias)
    expand, reduce = balanced(factors.expand, factors.reduce)
    return LowRank(rank), LowRank(rank).pack(expand.to(dtype), reduce.to(dtype), bias)


def _fused(
    module: nn.Module,
    parts: Sequence[Matrix],
    factors: Mapping[str, Factors],
    storage: str,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Piece:
    forms: list[tuple[tuple[int, int, int, int], Form]] = []
    packed = []
    for part in parts:
        rows = part.view.rows
        assert rows is not None
        if part.name in factors:
            form, tensors = _single(factors[part.name], storage, dtype, None)
        else:
            weight = read(getattr(module, part.parameter), part.view).to(dtype)
            form, tensors = Dense(), Dense().pack(weight.contiguous())
        forms.append(((rows.start, rows.block, rows.stride, rows.count), form))
        packed.append(tensors)
    whole = Rows(tuple(forms))
    shape = (sum(part.out_features for part in parts), parts[0].in_features)
    return Piece(parts[0].module, whole, whole.pack(packed, bias), shape)


def _new_bias(module: nn.Module, parts: Sequence[Matrix], factors: Mapping[str, Factors]) -> Tensor | None:
    bias: Tensor | None = getattr(module, "bias", None)
    if bias is None:
        return None
    changed = bias.detach().double().clone()
    for part in parts:
        gain = factors[part.name].bias_gain if part.name in factors else None
        if gain is not None:
            rows = part.view.rows
            index = slice(None) if rows is None else _index(part)
            changed[index] += gain.to(changed)
    return changed


def _index(part: Matrix) -> Tensor:
    from kanna.models.views import row_index

    assert part.view.rows is not None
    return row_index(part.view.rows)
