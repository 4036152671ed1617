"""Task files of lm_eval: which task they hold."""

from pathlib import Path
from typing import Any

import yaml

from kanna.checked import read_yaml
from kanna.errors import InputError


class _TaskFile(yaml.SafeLoader):
    """Reads what stands under tags such as !function, which only lm_eval knows, as if they were not there."""


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_TaskFile.add_multi_constructor("!", _untagged)


def is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def name_in(path: Path) -> str:
    """The `task:` of a task file, or the `group:` of a file that names several."""
    task = read_yaml(path, "{task: my_task, dataset_path: json, ...}", _TaskFile)
    names = [task.get(key) for key in ("group", "task")] if isinstance(task, dict) else []
    name = next((name for name in names if isinstance(name, str)), None)
    if name is None:
        raise InputError(f"{path} names no task", "an lm_eval task file has a line such as task: my_task")
    return name
