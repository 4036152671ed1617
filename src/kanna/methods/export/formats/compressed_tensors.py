"""compressed-tensors, `pack-quantized`: read by transformers and vLLM.

The middle code of each width is 0 there, so unsigned codes are those of kanna. transformers reads zero-points
only when it multiplies out on loading, which the file therefore asks for. Three bits lie as one stream since
version 0.17 of compressed-tensors; older ones would read other numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from kanna.methods.export import fit
from kanna.methods.export.formats.loaders import installed, logits_of, through_transformers
from kanna.methods.export.formats.target import Directory, Logits
from kanna.methods.export.held import Held
from kanna.quant.grid import Grid
from kanna.quant.layouts import compressed
from kanna.runs.source import Source

# Which lays all widths out as one stream.
_VERSION = "0.17.0"


class CompressedTensors(Directory):
    """See the module."""

    name = "compressed-tensors"
    loader = "transformers with compressed-tensors"
    layout: ClassVar[Any] = compressed

    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        fit.one_stack(source, self.name)
        fit.no_experts(source, self.name)
        fit.whole_groups(layers, self.name)

    def declared(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Any]:
        grids = list(dict.fromkeys(layer.grid for layer in layers))
        groups = {
            f"group_{number}": {
                "targets": ["Linear"] if len(grids) == 1 else _named(layers, grid),
                "weights": _weights(grid),
            }
            for number, grid in enumerate(grids)
        }
        found: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "version": _VERSION,
            "ignore": _others(source, layers),
            "config_groups": groups,
        }
        if not all(grid.symmetric for grid in grids):
            found["dequantize"] = True
        return {"quantization_config": found}

    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        dense_stream = any(layer.grid.bits not in (2, 4, 8) for layer in layers)
        installed("compressed_tensors", "compressed-tensors", _VERSION if dense_stream else None)
        return logits_of(through_transformers(directory, source))


def _weights(grid: Grid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if grid.group is None else "group",
        "group_size": grid.group,
        "dynamic": False,
        "actorder": None,
    }


def _named(layers: Sequence[Held], grid: Grid) -> list[str]:
    return [layer.path for layer in layers if layer.grid == grid]


def _others(source: Source, layers: Sequence[Held]) -> list[str]:
    """Linear layers that stay as they are."""
    held = {layer.path for layer in layers}
    linear = (path for path, module in source.skeleton.named_modules() if isinstance(module, nn.Linear))
    return [path for path in linear if path not in held]


TARGET = CompressedTensors()
