"""AWQ, version gemm: four bits, read by vLLM and by transformers with gptqmodel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from kanna.methods.export import fit
from kanna.methods.export.formats.loaders import logits_of, read_back, with_codes
from kanna.methods.export.formats.target import Directory, Logits
from kanna.methods.export.held import Held
from kanna.quant.layouts import awq
from kanna.runs.source import Source


class Awq(Directory):
    """See the module."""

    name = "awq"
    loader = "kanna's own reader of the format"
    layout: ClassVar[Any] = awq

    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        fit.one_stack(source, self.name)
        fit.no_experts(source, self.name)
        fit.bits_among(layers, (awq.BITS,), self.name)
        fit.one_grid(layers, self.name)
        fit.whole_groups(layers, self.name)
        fit.multiples(layers, 1, awq.OUTPUTS, self.name)

    def declared(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Any]:
        grid, held = layers[0].grid, {layer.path for layer in layers}
        linear = (path for path, module in source.skeleton.named_modules() if isinstance(module, nn.Linear))
        return {
            "quantization_config": {
                "quant_method": "awq",
                "bits": awq.BITS,
                "group_size": -1 if grid.group is None else grid.group,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": [path for path in linear if path not in held],
            }
        }

    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        names = (awq.PACKED, awq.ZERO, awq.SCALE)
        read = read_back(
            directory, layers, names, lambda held, layer: awq.codes(held, layer.grid, layer.m, layer.n)
        )
        return logits_of(with_codes(source, layers, read))


TARGET = Awq()
