"""From the factors of matrices to the form and tensors of a module, and the module in a loaded block."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kanna.errors import KannaError
from kanna.forms import Dense, Form, FormModule, Int, LowRank, Pivot, Rows, dense_weight, install
from kanna.forms.base import Packable
from kanna.linalg.pivot import pivot_factors
from kanna.linalg.whitening import balanced
from kanna.models.matrix import Matrix, View
from kanna.models.views import read, row_index
from kanna.quant.grid import Codes

Slice = tuple[int, int, int, int]


@dataclass(frozen=True)
class Factors:
    """W' = expand (m, k) @ reduce (k, n); each may be whole numbers.

    Args:
        bias_gain: What the bias gains (m,); None for nothing.
        storage: "pair", or "pivot".
    """

    expand: Tensor | Codes
    reduce: Tensor | Codes
    bias_gain: Tensor | None = None
    storage: str = "pair"


New = Factors | Codes | Tensor


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
    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]

    @property
    def named(self) -> dict[str, Tensor]:
        """Full parameter names -> tensors."""
        return {f"{self.module}.{suffix}": tensor for suffix, tensor in self.tensors.items()}


def matrix_weight(module: nn.Module, view: View) -> Tensor:
    """The dense matrix (m, n) that `view` shows of a module in any form; it may share the module's memory.

    Raises:
        TypeError: Neither a linear layer, nor a module of a form, nor one that just holds parameters.
    """
    if isinstance(module, FormModule):
        # What a form multiplies out to is never transposed, whatever the dense module was.
        return read(dense_weight(module), View(rows=view.rows))
    if not (isinstance(module, nn.Linear | Conv1D) or type(module) is nn.Module):
        raise TypeError(f"a linear layer was expected, found {type(module).__name__}")
    weight: Tensor = module.weight  # type: ignore[assignment]
    return read(weight, view)


def factors_of(module: nn.Module, matrix: Matrix) -> tuple[Tensor, Tensor]:
    """Expand (m, k) and reduce (k, n) of a matrix whose module, or whose rows of it, is a pair of factors."""
    rows, held = matrix.view.rows, module
    if isinstance(module, FormModule) and isinstance(module.form, Rows) and rows is not None:
        number = [where for where, _ in module.form.parts].index(_slice(matrix))
        held = module.get_submodule(f"parts.{number}")
    expand, reduce = (dense_weight(held.get_submodule(name)) for name in ("expand", "reduce"))
    return expand, reduce


def whole_shape(parts: Sequence[Matrix]) -> tuple[int, int]:
    """(m, n) of the module that holds `parts`, all its matrices."""
    return sum(part.out_features for part in parts), parts[0].in_features


def form_with(held: Form | None, parts: Sequence[Matrix], new: Mapping[str, Form]) -> Form:
    """The form of the module that holds `parts` when some of them change theirs.

    Args:
        held: Its form now; None where it is dense.
        parts: All matrices of the module, in the order of their rows.
        new: Matrix name -> its new form.
    """
    first = parts[0]
    if first.view.rows is None:
        return new[first.name]
    return Rows(tuple((_slice(part), new.get(part.name) or _part_form(held, part)) for part in parts))


def assemble(
    module: nn.Module,
    parts: Sequence[Matrix],
    new: Mapping[str, New],
    dtype: torch.dtype,
) -> Piece | None:
    """The module that holds `parts` with those that are new replaced; None if none is.

    Args:
        module: As it is now, dense or in a form.
        parts: All matrices of that module, in the order of their rows.
        new: By matrix name its factors, its codes or a dense matrix (m, n); a part without stays as it is.
        dtype: Of what is stored.
    """
    if not any(part.name in new for part in parts):
        return None
    bias = _new_bias(module, parts, new)
    bias = None if bias is None else bias.to(dtype)
    packed = {part.name: _packed(new[part.name], dtype) for part in parts if part.name in new}
    held = module.form if isinstance(module, FormModule) else None
    form = form_with(held, parts, {name: changed for name, (changed, _) in packed.items()})
    shape = whole_shape(parts)
    if not isinstance(form, Rows):
        _, tensors = packed[parts[0].name]
        return Piece(parts[0].module, form, form.pack(tensors, bias, dtype), shape)
    inner = {}
    for number, ((_, part_form), part) in enumerate(zip(form.parts, parts, strict=True)):
        if part.name in packed:
            inner[f"parts.{number}"] = part_form.pack(packed[part.name][1], dtype=dtype)
        else:
            inner[f"parts.{number}"] = _staying(module, part, part_form, dtype)
    return Piece(parts[0].module, form, form.pack(inner, bias, dtype), shape)


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


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias (m,) of a module in any form."""
    if isinstance(module, FormModule):
        return module.state_dict(keep_vars=True).get(module.form.bias_suffix)
    bias: Tensor | None = getattr(module, "bias", None)
    return bias


def _packed(new: New, dtype: torch.dtype) -> tuple[Form, Mapping[str, Packable]]:
    """The form of what is new, and what it is packed from."""
    if isinstance(new, Tensor):
        return Dense(), {"weight": new.to(dtype).contiguous()}
    if isinstance(new, Codes):
        grid = new.grid
        return Int(grid.bits, grid.group, grid.symmetric), new.packed()
    return _packed_factors(new, dtype)


def _packed_factors(factors: Factors, dtype: torch.dtype) -> tuple[Form, Mapping[str, Packable]]:
    expand, reduce = factors.expand, factors.reduce
    if isinstance(expand, Tensor) and isinstance(reduce, Tensor):
        if factors.storage == "pivot":
            order, basis, mix = pivot_factors(expand, reduce)
            packed = {"order": order.int(), "basis": basis.to(dtype), "mix": mix.to(dtype)}
            return Pivot(len(reduce)), packed
        expand, reduce = balanced(expand, reduce)
    forms, parts = {}, {}
    for name, factor in (("reduce", reduce), ("expand", expand)):
        forms[name], held = _packed(factor, dtype)
        parts[name] = forms[name].pack(held, dtype=dtype)
    return LowRank(_rank(reduce), **forms), parts


def _rank(reduce: Tensor | Codes) -> int:
    return len(reduce if isinstance(reduce, Tensor) else reduce.codes)


def _slice(part: Matrix) -> Slice:
    rows = part.view.rows
    assert rows is not None
    return rows.start, rows.block, rows.stride, rows.count


def _part_form(held: Form | None, part: Matrix) -> Form:
    """The form of one slice of rows of a fused module."""
    if held is None:
        return Dense()
    place = _slice(part)
    forms = [form for where, form in held.parts if where == place] if isinstance(held, Rows) else []
    if not forms:
        raise KannaError(f"{part.module} is stored in a {held.key} form that does not know {part.name} apart")
    return forms[0]


def _staying(module: nn.Module, part: Matrix, form: Form, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a slice that keeps its form, as they will be stored."""
    if not isinstance(module, FormModule):
        weight = matrix_weight(module, part.view).to(dtype)
        return form.pack({"weight": weight.contiguous()})
    assert isinstance(module.form, Rows)
    number = [where for where, _ in module.form.parts].index(_slice(part))
    held = module.get_submodule(f"parts.{number}").state_dict()
    return {suffix: value.to(form.dtype_of(suffix, dtype)).contiguous() for suffix, value in held.items()}


def _new_bias(module: nn.Module, parts: Sequence[Matrix], new: Mapping[str, New]) -> Tensor | None:
    bias = bias_of(module)
    if bias is None:
        return None
    changed = bias.detach().double().clone()
    for part in parts:
        gain = getattr(new.get(part.name), "bias_gain", None)
        if gain is not None:
            index = slice(None) if part.view.rows is None else row_index(part.view.rows)
            changed[index] += gain.to(changed)
    return changed
