"""Which matrices become whole numbers, on which grids; known from headers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from kanna.calibration.trial import Trial
from kanna.calibration.windows import Windows
from kanna.errors import InputError
from kanna.forms import Form, Int, LowRank
from kanna.methods.quantize.config import QuantizeConfig
from kanna.methods.quantize.idle import idle_settings
from kanna.methods.quantize.memory import peak_memory
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.quant.grid import Grid
from kanna.reporting.blocks import Table
from kanna.reporting.wording import size
from kanna.runs.assemble import form_with
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.runs.step import Plan as AnyPlan

# Below so many bits a weight, rounding alone ruins most models; figures are those of docs/peqa.md.
_FEW_BITS = 3
_TWO_BITS = (
    "2 bits ruin most models unless scales are tuned afterwards (kanna tune): of the answers of the demo "
    "model 99.3 % were right before, 90.3 % are by minmax, 95.3 % with --calibration; the perplexity of "
    "SmolLM2-135M rises from 25.5 to 74.9 by minmax at 3 bits already"
)


@dataclass(frozen=True, kw_only=True)
class Plan(AnyPlan):
    """What is quantised.

    Args:
        config: Resolved.
        inventory: Of the whole model.
        selected: What becomes whole numbers.
        grids: By name of the selected matrices.
        stored: How each of them is stored now.
        held: Module path -> its form now, of modules that are not dense.
        windows: Of calibration text; None where none is read.
        tried: What one call of the model showed; None where nothing is run.
        before: Bytes of the selected matrices now.
    """

    config: QuantizeConfig
    inventory: Inventory
    selected: tuple[Matrix, ...]
    grids: Mapping[str, Grid]
    stored: Mapping[str, Form]
    held: Mapping[str, Form]
    windows: Windows | None = None
    tried: Trial | None = None
    before: int = 0

    less_memory: ClassVar[str] = "lower --batch or --tokens"

    @property
    def data_hash(self) -> str | None:
        return None if self.windows is None else self.windows.digest

    def form(self, matrix: Matrix) -> Form:
        """How a selected matrix will be stored."""
        grid, held = self.grids[matrix.name], self.stored[matrix.name]
        numbers = Int(grid.bits, grid.group, grid.symmetric)
        return LowRank(held.rank, reduce=numbers, expand=numbers) if isinstance(held, LowRank) else numbers

    def parts(self, module: str) -> list[Matrix]:
        """All matrices of a module."""
        return [matrix for matrix in self.inventory.matrices if matrix.module == module]

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(matrix.module for matrix in self.selected))

    def forms(self) -> Mapping[str, Form]:
        new = {matrix.name: self.form(matrix) for matrix in self.selected}
        return {path: form_with(self.held.get(path), self.parts(path), new) for path in self.modules}

    def bits(self, matrix: Matrix) -> float:
        """Stored bits a weight of a selected matrix, scales and zero-points counted."""
        form = self.form(matrix)
        return 8 * _bytes(form, matrix) / (matrix.out_features * matrix.in_features)

    @property
    def after(self) -> int:
        """Bytes of the selected matrices at the end."""
        return sum(_bytes(self.form(matrix), matrix) for matrix in self.selected)

    def lines(self) -> list[str]:
        config = self.config
        group = "one group a row" if config.group_size is None else f"groups of {config.group_size}"
        return [
            f"{len(self.selected)} matrices of {size(self.before)} become {size(self.after)}; "
            f"{config.bits} bits, {group}, method {config.method}",
            f"peak memory about {size(self.memory)}",
        ]

    def tables(self) -> list[Table]:
        rows = [
            [
                matrix.name,
                f"{matrix.out_features} x {matrix.in_features}",
                str(self.grids[matrix.name].bits),
                f"{self.bits(matrix):.2f}",
            ]
            for matrix in self.selected
        ]
        return [Table("Matrices", ("matrix", "size", ">bits", ">bits a weight with scales"), rows)]

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "matrices": len(self.selected),
            "bytes": self.before,
            "bytes_at_end": self.after,
        }


def _bytes(form: Form, matrix: Matrix) -> int:
    """Of a matrix alone, without bias; nothing of it is stored in the dtype of the model but sentinels."""
    return form.bytes(*matrix.shape, torch.float32)


def make_plan(source: Source, config: QuantizeConfig, windows: Windows | None, inputs: Inputs) -> Plan:
    """Choose matrices and grids.

    Raises:
        InputError: A selection that matches nothing; bits for what is not selected; gptq without text.
    """
    resolved = config.resolved(windows is not None)
    resolved.check_given(has_text=windows is not None)
    inventory = source.inventory
    has_text, text_given = windows is not None, inputs.calibration is not None
    notes = idle_settings(resolved, has_text, bool(inputs.tasks), text_given)
    selected = list(select(inventory.matrices, config.select))
    if config.skip is not None:
        left_out = set(select(selected, config.skip))
        selected = [matrix for matrix in selected if matrix not in left_out]
        if not selected:
            raise InputError(f"--skip {config.skip} leaves nothing of --select {config.select}", "skip less")
    tried = source.trial
    odd = [matrix for matrix in selected if matrix.module in tried.read]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        notes.append(f"{odd[0].name}{more} left as it is: the model's own code reads its weight")
        selected = [matrix for matrix in selected if matrix not in odd]
    if inventory.refused:
        notes.append(f"{len(inventory.refused)} matrices are left out: {inventory.refused[0].refused}")
    if not selected:
        raise InputError("no matrix is left to quantise", "select other matrices")
    for matrix in selected:
        source.tensor_of(matrix)
    if config.bits < _FEW_BITS:
        notes.append(_TWO_BITS)
    widest = max(matrix.in_features for matrix in selected)
    if config.group_size is not None and config.group_size > widest:
        notes.append(f"no matrix has {config.group_size:,} inputs: each row is one group, as with channel")
    plan = Plan(
        config=resolved,
        notes=tuple(notes),
        memory=0,
        work_bytes=0,
        inventory=inventory,
        selected=tuple(selected),
        grids=_grids(selected, config),
        stored={matrix.name: source.form(matrix) for matrix in selected},
        held=source.forms,
        windows=windows,
        tried=None if windows is None else tried,
        before=sum(_stored_bytes(source, matrix) for matrix in selected),
    )
    return replace(plan, memory=peak_memory(source, resolved, selected, windows, plan.after))


def _grids(selected: Sequence[Matrix], config: QuantizeConfig) -> dict[str, Grid]:
    grids = {m.name: Grid(config.bits, config.group_size, config.symmetric) for m in selected}
    for said in config.bits_of:
        expression, _, bits = said.rpartition("=")
        if not expression or not bits.isdecimal():
            raise InputError(f"--bits-of {said} does not say how many bits", "write it as down=8")
        for matrix in select(selected, expression):
            grids[matrix.name] = Grid(int(bits), config.group_size, config.symmetric)
    return grids


def _stored_bytes(source: Source, matrix: Matrix) -> int:
    return source.form(matrix).bytes(*matrix.shape, source.dtype(matrix.module))
