"""MLX: read by mlx-lm, on Apple's machines and on others.

Which layers are in whole numbers is told there by which have scales; layers of other bits or groups than most
are named in config.json.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kanna.methods.export import fit
from kanna.methods.export.formats.loaders import installed
from kanna.methods.export.formats.target import Directory, Logits, NotInstalled
from kanna.methods.export.held import Held
from kanna.quant.grid import Grid
from kanna.quant.layouts import mlx
from kanna.runs.source import Source

_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


class Mlx(Directory):
    """See the module."""

    name = "mlx"
    half = False
    loader = "mlx-lm"
    layout: ClassVar[Any] = mlx

    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        fit.one_stack(source, self.name)
        fit.no_experts(source, self.name)
        fit.bits_among(layers, _BITS, self.name)
        fit.groups_among(layers, _GROUPS, self.name)
        fit.whole_groups(layers, self.name)

    def declared(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Any]:
        counted = Counter((layer.grid.bits, layer.grid.group) for layer in layers)
        usual = counted.most_common(1)[0][0]
        others = {
            layer.prefix: _settings(layer.grid)
            for layer in layers
            if (layer.grid.bits, layer.grid.group) != usual
        }
        most = next(layer.grid for layer in layers if (layer.grid.bits, layer.grid.group) == usual)
        settings = {**_settings(most), **others}
        positions = positions_apart(source.checkpoint.config)
        return {"quantization": settings, "quantization_config": settings, **positions}

    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        core, utils = installed("mlx.core", "mlx"), installed("mlx_lm.utils", "mlx-lm")
        try:
            model, _ = utils.load_model(directory)
        except ValueError as error:  # an architecture that it does not have
            raise NotInstalled(f"mlx-lm cannot load it: {error}") from error
        model.set_dtype(core.float32)

        def logits(ids: Tensor) -> Tensor:
            found = model(core.array(ids.numpy())).astype(core.float32)
            return torch.from_numpy(np.array(found))

        return logits


def positions_apart(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in which most models of mlx-lm look for how positions are turned.

    transformers writes them together as `rope_parameters` since version 5; where mlx-lm does not find them it
    computes with a base of its own, and says nothing. What config.json says apart already stays.
    """
    together = _of_all_layers(config.get("rope_parameters") or {})
    if "rope_theta" not in together:  # none, or others for each kind of layer
        return {}
    apart: dict[str, Any] = {"rope_theta": together["rope_theta"]}
    if "partial_rotary_factor" in together:
        apart["partial_rotary_factor"] = together["partial_rotary_factor"]
    if together.get("rope_type", "default") != "default":
        apart["rope_scaling"] = {key: value for key, value in together.items() if key not in apart}
    return {key: value for key, value in apart.items() if config.get(key) is None}


def _of_all_layers(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said for each kind of layer, where that is the same for all of them."""
    kinds = list(parameters.values())
    if kinds and isinstance(kinds[0], Mapping) and all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    return parameters


def _settings(grid: Grid) -> dict[str, Any]:
    return {"bits": grid.bits, "group_size": grid.group, "mode": "affine"}


TARGET = Mlx()
