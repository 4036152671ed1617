"""compressed-tensors in the format `pack-quantized`: weights alone, in whole numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.packed.layers import FETCH, Layer, fitting, setting, whole
from kanna.errors import InputError
from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import compressed, gptq

_WHERE = "quantization_config"
_ORDER = "weight_g_idx"


@dataclass(frozen=True)
class Compressed:
    """What its quantization_config says.

    Args:
        groups: Which layers, as names, regular expressions after "re:", or the class Linear; and their grid.
    """

    groups: tuple[tuple[tuple[str, ...], Grid], ...]
    format: str = "compressed-tensors"
    marker: str = compressed.PACKED
    suffixes: tuple[str, ...] = (
        compressed.PACKED,
        compressed.SCALE,
        compressed.ZERO,
        compressed.SHAPE,
        _ORDER,
    )

    def grid(self, layer: Layer) -> Grid:
        """That of the group that names the layer most closely."""
        names = {layer.path, layer.prefix}
        for fits in (_is_named, _is_linear):
            for targets, grid in self.groups:
                if any(fits(target, names) for target in targets):
                    return whole(layer, grid)
        raise InputError(f"no group of config.json names {layer.path}, which is packed in the files", FETCH)

    def codes(self, layer: Layer, held: Mapping[str, Tensor]) -> Codes:
        grid = self.grid(layer)
        shapes = compressed.shapes(grid, layer.m, layer.n)
        fitting(layer, held, {name: kind for name, kind in shapes.items() if name != compressed.SHAPE})
        order = held.get(_ORDER)
        if order is not None and not torch.equal(order.int(), gptq.in_order(grid, layer.n)):
            raise InputError(
                f"the inputs of {layer.path} are in another order (actorder): groups are no runs of inputs",
                "quantise it with actorder off, or static",
            )
        return compressed.codes(held, grid, layer.m, layer.n)


def read(config: Mapping[str, Any]) -> Compressed:
    """Of a quantization_config.

    Raises:
        InputError: It says what kanna does not take over.
    """
    setting(config, "format", ("pack-quantized",), _WHERE)
    setting(config, "kv_cache_scheme", (None,), _WHERE)
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise InputError("quantization_config has no config_groups", FETCH)
    return Compressed(tuple(_group(name, group) for name, group in groups.items()))


def _group(name: str, group: Mapping[str, Any]) -> tuple[tuple[str, ...], Grid]:
    where = f"{_WHERE}.config_groups.{name}"
    for activations in ("input_activations", "output_activations"):
        setting(group, activations, (None,), where)
    weights: Mapping[str, Any] = group.get("weights") or {}
    setting(weights, "type", ("int",), f"{where}.weights")
    strategy = setting(weights, "strategy", ("group", "channel"), f"{where}.weights")
    bits = setting(weights, "num_bits", range(2, 9), f"{where}.weights")
    size = weights.get("group_size") if strategy == "group" else None
    targets: Sequence[str] = group.get("targets") or ()
    return tuple(targets), Grid(bits, size, bool(weights.get("symmetric", True)))


def _is_named(target: str, names: set[str]) -> bool:
    if target.startswith("re:"):
        return any(re.match(target.removeprefix("re:"), name) for name in names)
    return target in names


def _is_linear(target: str, _: set[str]) -> bool:
    return target == "Linear"
