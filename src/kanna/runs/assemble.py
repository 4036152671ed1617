"""From the factors of matrices to the form, tensors and module of a layer, and back to its dense weight."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kanna.forms import Dense, Form, FormModule, LowRank, Pivot, Rows, dense_weight, install
from kanna.linalg.pivot import pivot_factors
from kanna.linalg.whitening import balanced
from kanna.models.matrix import Matrix, View
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
    module = piece.form.build(m, n, bias, dtype, device)
    with torch.no_grad():
        module.load_state_dict({name: value.to(device) for name, value in piece.tensors.items()})
    return module.eval().requires_grad_(False)


def install_piece(
    block: nn.Module, path: str, piece: Piece, dtype: torch.dtype, device: torch.device
) -> None:
    """Put a piece's module into the block at `path`, which is one of ours."""
    install(block, piece.module.removeprefix(f"{path}."), build(piece, dtype, device))


def matrix_weight(module: nn.Module, view: View) -> Tensor:
    """The dense matrix (m, n) that `view` shows of the weight of a linear layer, in any form.

    The view is that of the ordinary layer; a form multiplied out is never transposed. The result may share
    memory with the module.

    Raises:
        TypeError: Neither nn.Linear, Conv1D nor a module of a form.
    """
    if isinstance(module, Conv1D):
        return read(module.weight, view)
    return read(dense_weight(module), View(rows=view.rows))


def densify(model: nn.Module, transposed: Collection[str] = ()) -> None:
    """Replace every module of a form by the ordinary layer that it stands for, weight and bias as merged.

    A model that transformers loaded forgets that it was compressed, so that saving it gives a dense one.

    Args:
        transposed: Paths below `model` where the architecture has a Conv1D, not an nn.Linear.
    """
    paths: list[str] = []
    for path, module in model.named_modules():
        inside = bool(paths) and path.startswith(f"{paths[-1]}.")
        if isinstance(module, FormModule) and not inside:
            paths.append(path)
    for path in paths:
        form_module = model.get_submodule(path)
        assert isinstance(form_module, FormModule)
        install(model, path, _ordinary(form_module, path in transposed))
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)


def _ordinary(module: FormModule, transposed: bool) -> nn.Module:
    """An nn.Linear or a Conv1D that computes what `module` does."""
    weight, bias = dense_weight(module).detach(), module.state_dict().get(module.form.bias_suffix)
    m, n = weight.shape
    with torch.device("meta"):
        layer = Conv1D(m, n) if transposed else nn.Linear(n, m, bias=bias is not None)
    layer.weight = nn.Parameter(weight.T.contiguous() if transposed else weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    elif transposed:  # A Conv1D always adds one.
        layer.bias = nn.Parameter(weight.new_zeros(m))
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return layer.train(module.training).requires_grad_(trained)


def _single(
    factors: Factors, storage: str, dtype: torch.dtype, bias: Tensor | None
) -> tuple[Form, dict[str, Tensor]]:
    rank = factors.reduce.shape[0]
    if storage == "pivot":
        order, chosen, mix = pivot_factors(factors.expand, factors.reduce)
        stored = {"order": order, "basis": chosen.to(dtype), "mix": mix.to(dtype)}
        return Pivot(rank), Pivot(rank).pack(stored, bias)
    expand, reduce = balanced(factors.expand, factors.reduce)
    return LowRank(rank), LowRank(rank).pack({"expand": expand.to(dtype), "reduce": reduce.to(dtype)}, bias)


def _fused(
    module: nn.Module,
    parts: Sequence[Matrix],
    factors: Mapping[str, Factors],
    storage: str,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Piece:
    forms: list[tuple[tuple[int, int, int, int], Form]] = []
    packed: dict[str, Tensor | dict[str, Tensor]] = {}
    for i, part in enumerate(parts):
        rows = part.view.rows
        assert rows is not None
        if part.name in factors:
            form, packed[f"parts.{i}"] = _single(factors[part.name], storage, dtype, None)
        else:
            weight = read(getattr(module, part.parameter), part.view).to(dtype)
            form, packed[f"parts.{i}"] = Dense(), weight.contiguous()
        forms.append(((rows.start, rows.block, rows.stride, rows.count), form))
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
