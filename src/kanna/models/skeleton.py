"""The model of a configuration on the meta device: every shape, no weight, no network."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kanna.checked import read_json
from kanna.errors import InputError


def skeleton(source: PretrainedConfig | str | Path) -> nn.Module:
    """Build the model of ``architectures[0]`` on the meta device.

    Code that comes with a model is never run, and nothing is fetched.

    Args:
        source: A configuration, a directory with a ``config.json``, or such a file.

    Raises:
        InputError: No or broken ``config.json``, or an architecture that transformers does not have.
    """
    config = source if isinstance(source, PretrainedConfig) else read_config(Path(source))
    name = _architecture_name(config)
    architecture = getattr(transformers, name, None)
    if architecture is None or not hasattr(architecture, "_from_config"):
        close = difflib.get_close_matches(name, [known for known in dir(transformers) if "For" in known], n=3)
        has = f"it has {', '.join(close)}; " if close else ""
        raise InputError(
            f"unknown architecture {name!r} in config.json",
            f"transformers {transformers.__version__} must have the class; {has}kanna runs no model's code",
        )
    try:
        with torch.device("meta"):
            return architecture._from_config(config)
    except Exception as error:
        raise InputError(
            f"transformers {transformers.__version__} cannot build {name} from this config.json: {error}",
            "compare config.json with that of the original model",
        ) from error


def read_config(path: Path) -> PretrainedConfig:
    """The configuration in directory or file `path`.

    Raises:
        InputError: It is missing, is no JSON object, names a model type that transformers does not have, or
            asks for compiled code from the hub.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"no config.json: {file} does not exist",
            "give the directory of a model in Hugging Face layout, with config.json beside its safetensors",
        )
    entries = read_json(file)
    if kernel := next(_kernels(entries), None):
        raise InputError(
            f"{file} asks for a kernel from the hub: {kernel!r}",
            "remove that entry; kanna fetches nothing and runs no code of a model",
        )
    model_type = str(entries.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=3)
        known = f"it knows {', '.join(close)}" if close else "upgrade transformers if the model is newer"
        own_code = " (it runs code of its own, which kanna never does)" if "auto_map" in entries else ""
        raise InputError(
            f"unknown model_type {model_type!r} in {file}{own_code}",
            f"transformers {transformers.__version__} must know the model; {known}",
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(entries)
    except Exception as error:
        raise InputError(
            f"{file} is no valid {model_type} configuration: {error}", "mend that value"
        ) from error


def _kernels(entries: object, inside: bool = False) -> Iterator[str]:
    """Repositories named where an implementation of attention or experts is chosen, at any depth.

    transformers fetches and runs such a kernel while it builds the model, where the library for it is there.
    """
    if isinstance(entries, str) and inside and "/" in entries:
        yield entries
    elif isinstance(entries, dict):
        for key, value in entries.items():
            yield from _kernels(value, inside or "_implementation" in key)
    elif isinstance(entries, list):
        for value in entries:
            yield from _kernels(value, inside)


def _architecture_name(config: PretrainedConfig) -> str:
    names = getattr(config, "architectures", None)
    if isinstance(names, list | tuple) and names:
        return str(names[0])
    usual = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "LlamaForCausalLM")
    raise InputError(
        "config.json does not say which class the weights are for: `architectures` is missing or no list",
        f'add it, for example "architectures": ["{usual}"]',
    )
