"""The model of a configuration on the meta device: every shape, no weight, no network."""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kanna.checked import plain_floats, read_json
from kanna.errors import InputError
from kanna.models.kinds import refuse_without_text

# What a class puts behind the name of its family: the head that its weights are for.
_HEAD = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")
_SAME_HEAD = {"LMHeadModel": "ForCausalLM"}


def skeleton(source: PretrainedConfig | str | Path) -> nn.Module:
    """Build the model of ``architectures[0]`` on the meta device.

    Code that comes with a model is never run, and nothing is fetched.

    Args:
        source: A configuration, a directory with a ``config.json``, or such a file.

    Raises:
        InputError: No or broken ``config.json``, an architecture that transformers does not have, or one
            that reads no text.
    """
    config = source if isinstance(source, PretrainedConfig) else read_config(Path(source))
    architecture = architecture_of(config)
    refuse_without_text(architecture)
    try:
        with torch.device("meta"):
            built: nn.Module = architecture._from_config(config)
            return built
    except Exception as error:
        raise InputError(
            f"transformers {transformers.__version__} cannot build {architecture.__name__} from this "
            f"config.json: {error}",
            "compare config.json with that of the original model",
        ) from error


def architecture_of(config: PretrainedConfig) -> Any:
    """The class of transformers for `architectures[0]`.

    A name that transformers does not have may be that of the model's own code (MPTForCausalLM): then it is
    the class with the same head that transformers has for this model type, as its Auto classes choose it.

    Raises:
        InputError: None is named, or transformers has no such class.
    """
    name = _architecture_name(config)
    architecture = getattr(transformers, name, None)
    if architecture is None:
        architecture = getattr(transformers, _name_of_family(config.model_type, name), None)
    if architecture is not None and hasattr(architecture, "_from_config"):
        return architecture
    close = difflib.get_close_matches(name, [known for known in dir(transformers) if "For" in known], n=3)
    has = f"it has {', '.join(close)}; " if close else ""
    raise InputError(
        f"unknown architecture {name!r} in config.json",
        f"transformers {transformers.__version__} must have the class; {has}kanna runs no model's code",
    )


def _name_of_family(model_type: str, name: str) -> str:
    """The class of a model type with the same head as `name`; empty where there is none, or more than one."""
    head = _head(name)
    tables = [table for key, table in vars(modeling_auto).items() if key.endswith("_MAPPING_NAMES")]
    known = {table.get(model_type) for table in tables if isinstance(table, dict)}
    same = sorted(other for other in known if isinstance(other, str) and head and _head(other) == head)
    return same[0] if len(same) == 1 else ""


def _head(name: str) -> str:
    found = _HEAD.search(name)
    head = "" if found is None else found[1]
    return _SAME_HEAD.get(head, head)


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
    return configured(read_json(file), str(file))


def configured(entries: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The configuration that a ``config.json`` holds.

    Args:
        where: For messages.

    Raises:
        InputError: It names a model type that transformers does not have, or asks for compiled code from the
            hub.
    """
    if kernel := next(_kernels(entries), None):
        raise InputError(
            f"{where} asks for a kernel from the hub: {kernel!r}",
            "remove that entry; kanna fetches nothing and runs no code of a model",
        )
    model_type = str(entries.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=3)
        known = f"it knows {', '.join(close)}" if close else "upgrade transformers if the model is newer"
        own_code = " (it runs code of its own, which kanna never does)" if "auto_map" in entries else ""
        raise InputError(
            f"unknown model_type {model_type!r} in {where}{own_code}",
            f"transformers {transformers.__version__} must know the model; {known}",
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(plain_floats(copy.deepcopy(dict(entries))))
    except Exception as error:
        raise InputError(
            f"{where} is no valid {model_type} configuration: {error}", "mend that value"
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
