"""Experts that transformers keeps stacked in one 3-D parameter: listed one by one, and refused for now."""

from collections.abc import Iterator

from torch import Tensor, nn

from kanna.models.families import halves, role_of
from kanna.models.matrix import Matrix, RowSlice, View

REFUSED = "the experts are stacked in one 3-D parameter, of which single experts cannot be factorised yet"


def expert_matrices(path: str, module: nn.Module, layer: int) -> list[Matrix]:
    """One matrix per expert and projection of a module with 3-D parameters; none for another module."""
    stacked = [(name, p) for name, p in module.named_parameters(recurse=False) if p.dim() == 3]
    return [m for name, parameter in stacked for m in _stack(path, name, parameter, module, layer)]


def _stack(path: str, name: str, parameter: Tensor, module: nn.Module, layer: int) -> Iterator[Matrix]:
    # The decorator of transformers' expert classes sets these; a class without it stores (experts, out, in).
    transposed = bool(getattr(module, "is_transposed", False))
    rows, columns = reversed(parameter.shape[1:]) if transposed else parameter.shape[1:]
    for expert in range(parameter.shape[0]):
        for role, part in _parts(role_of(name), rows, module):
            yield Matrix(
                name=f"{path}.{name}#{expert}" + (f".{role}" if part else ""),
                module=path,
                parameter=name,
                layer=layer,
                role=role,
                out_features=part.rows if part else rows,
                in_features=columns,
                view=View(rows=part, transposed=transposed, expert=expert),
                has_bias=bool(getattr(module, "has_bias", False)),
                refused=REFUSED,
            )


def _parts(role: str, rows: int, module: nn.Module) -> tuple[tuple[str, RowSlice | None], ...]:
    if role != "gate_up":
        return ((role, None),)
    if getattr(module, "is_concatenated", True):
        return halves(None, rows)
    half = rows // 2
    return ("gate", RowSlice(0, 1, 2, half)), ("up", RowSlice(1, 1, 2, half))
