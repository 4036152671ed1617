"""GPTQ, both versions of the format.

The first version stores zero-points less one. What it stores for 0 differs from writer to writer (some borrow
from the neighbour in the word, some spoil it), so a file in which that may have happened is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.packed.layers import FETCH, Layer, fitting, setting, whole
from kanna.errors import InputError
from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import gptq
from kanna.quant.packing import unpack

_WHERE = "quantization_config"
_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Gptq:
    """What its quantization_config says.

    Args:
        first: Whether zero-points are stored less one.
        ordered: Whether inputs may be in another order.
    """

    bits: int
    group: int | None
    symmetric: bool
    first: bool
    ordered: bool
    format: str = "gptq"
    marker: str = gptq.PACKED
    suffixes: tuple[str, ...] = (gptq.PACKED, gptq.ZERO, gptq.SCALE, gptq.GROUP)

    def grid(self, layer: Layer) -> Grid:
        return whole(layer, Grid(self.bits, self.group, self.symmetric))

    def codes(self, layer: Layer, held: Mapping[str, Tensor]) -> Codes:
        grid = self.grid(layer)
        shapes = {**gptq.shapes(grid, layer.m, layer.n)}
        order = held.get(gptq.GROUP)
        if order is None:
            del shapes[gptq.GROUP]
        fitting(layer, held, shapes)
        known = not self.ordered if order is None else torch.equal(order, gptq.in_order(grid, layer.n))
        if not known:
            raise InputError(
                f"the inputs of {layer.path} are in another order (act-order, desc_act): its groups are no "
                "runs of inputs",
                "quantise it without act-order, or with static groups",
            )
        if self.first:
            _check_first_version(layer, unpack(held[gptq.ZERO], self.bits, layer.m), grid)
        found = gptq.codes(held, grid, layer.m, layer.n, self.first)
        if grid.symmetric and not bool((found.zero == grid.middle).all()):
            raise InputError(
                f"config.json says that zero-points are the middle, and those of {layer.path} are not", FETCH
            )
        return found


def _check_first_version(layer: Layer, zeros: Tensor, grid: Grid) -> None:
    if bool((zeros == grid.top).any()):
        raise InputError(
            f"zero-points of {layer.path} are 0, which the first version of GPTQ's format does not hold",
            "save it again as gptq_v2 with what wrote it",
        )


def read(config: Mapping[str, Any]) -> Gptq:
    """Of a quantization_config.

    Raises:
        InputError: It says what kanna does not take over.
    """
    bits = setting(config, "bits", _BITS, _WHERE)
    version = setting(config, "checkpoint_format", (None, "gptq", "gptq_v2"), _WHERE)
    setting(config, "pack_dtype", (None, "int32"), _WHERE)
    setting(config, "is_marlin_format", (None, False), _WHERE)
    others = [name for name in config.get("dynamic") or {} if not str(name).startswith("-:")]
    if others:
        raise InputError(f"quantization_config has settings of their own for {others[0]!r}", FETCH)
    size = int(config.get("group_size", -1))
    symmetric, ordered = bool(config.get("sym", True)), bool(config.get("desc_act", False))
    return Gptq(bits, None if size < 1 else size, symmetric, version != "gptq_v2", ordered)
