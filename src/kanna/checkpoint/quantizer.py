"""What transformers calls, under the name "kanna", when it loads or saves a checkpoint of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kanna.checkpoint.applied import ACTIVE, has_sets, put_chosen, stored_changes
from kanna.checkpoint.declared import METHOD, Declared, parse_forms, put_forms
from kanna.checkpoint.location import locate
from kanna.checkpoint.reader import read_headers, weight_files
from kanna.errors import InputError
from kanna.models.skeleton import architecture_of


class KannaConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: the forms by module path.

    Raises:
        InputError: Newer format_version, unknown keys, an unknown form.
    """

    def __init__(self, **declared: Any) -> None:
        self.parsed = parse_forms(declared)
        self.quant_method = METHOD
        self.format_version = declared["format_version"]
        self.forms = dict(declared["forms"])

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "format_version": self.format_version, "forms": dict(self.forms)}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def restrict(self, declared: Iterable[Declared]) -> None:
        """Keep the forms that a model has, under its own module paths: what `save_pretrained` will write."""
        self.parsed = {layer.path: layer.form for layer in declared}
        self.forms = {path: form.to_json() for path, form in self.parsed.items()}


class KannaQuantizer(HfQuantizer):
    """Puts the modules of the forms in place before the weights are loaded, and scales in use afterwards."""

    # transformers takes this as: only checkpoints that kanna wrote, never a dense model on the fly.
    requires_calibration = True
    quantization_config: KannaConfig
    # The files that are loaded.
    _read: list[Path]

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Check every declared form against the model and the files' headers, then swap the modules.

        Raises:
            InputError: A form without a layer; a tensor of a form missing or of another shape. transformers
                itself would only warn, and initialise at random what is missing.
        """
        config: Any = model.config
        self._read = _files(kwargs, config)
        tensors = read_headers(self._read)
        forms = self.quantization_config.parsed
        self.quantization_config.restrict(put_forms(model, forms, _written_for(config), tensors))
        stored_changes(model, tensors)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        # The modules are ordinary ones: half(), float() and full training, which transformers denies to
        # quantized models, all work.
        model.is_quantized = False  # type: ignore[assignment]
        base = self._read[0].parent
        if has_sets(base):
            put_chosen(model, base, ACTIVE)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register(quantizers_auto: ModuleType) -> None:
    """Make transformers know kanna's checkpoints.

    Args:
        quantizers_auto: The module `transformers.quantizers.auto`.
    """
    if METHOD not in quantizers_auto.AUTO_QUANTIZER_MAPPING:
        quantizers_auto.register_quantization_config(METHOD)(KannaConfig)
        quantizers_auto.register_quantizer(METHOD)(KannaQuantizer)


def _written_for(config: Any) -> str | None:
    """Name of the class whose module paths the forms are declared by; None where transformers has none."""
    with contextlib.suppress(InputError):
        return str(architecture_of(config).__name__)
    return None


def _files(kwargs: Mapping[str, Any], config: Any) -> list[Path]:
    """The files that transformers is about to read; without their names, those of the directory."""
    if "checkpoint_files" not in kwargs:
        return list(weight_files(locate(config.name_or_path)))
    if not kwargs["checkpoint_files"]:
        raise InputError(
            "a checkpoint of kanna is loaded from its files, and here is only a state dict",
            "pass the directory to from_pretrained, or load_state_dict into a model that was loaded so",
        )
    return [Path(file) for file in kwargs["checkpoint_files"]]
