"""GPTQ, second version of the format: read by gptqmodel and vLLM.

The first one stores zero-points less one, in which a zero-point of 0 has no place; kanna never writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kanna.methods.export import fit
from kanna.methods.export.formats.loaders import logits_of, read_back, with_codes
from kanna.methods.export.formats.target import Directory, Logits
from kanna.methods.export.held import Held
from kanna.quant.layouts import gptq
from kanna.runs.source import Source

_BITS = (2, 3, 4, 8)


class Gptq(Directory):
    """See the module."""

    name = "gptq"
    loader = "kanna's own reader of the format"
    layout: ClassVar[Any] = gptq

    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        fit.one_stack(source, self.name)
        fit.no_experts(source, self.name)
        fit.bits_among(layers, _BITS, self.name)
        fit.one_grid(layers, self.name)
        fit.whole_groups(layers, self.name)
        fit.multiples(layers, 32, 32, self.name)
        fit.all_of_them(source, layers, self.name)

    def declared(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Any]:
        return {"quantization_config": _settings(layers)}

    def files(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Mapping[str, Any]]:
        return {"quantize_config.json": _settings(layers)}

    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        names = (gptq.PACKED, gptq.ZERO, gptq.SCALE)
        read = read_back(
            directory, layers, names, lambda held, layer: gptq.codes(held, layer.grid, layer.m, layer.n)
        )
        return logits_of(with_codes(source, layers, read))


def _settings(layers: Sequence[Held]) -> dict[str, Any]:
    grid = layers[0].grid
    return {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": -1 if grid.group is None else grid.group,
        "desc_act": False,
        "sym": grid.symmetric,
        "checkpoint_format": "gptq_v2",
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["kanna"]},
    }


TARGET = Gptq()
