"""What people and programs wrote, read and checked: one message where it is wrong."""

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kanna.errors import InputError
from kanna.wrong import what_is_wrong

M = TypeVar("M", bound=BaseModel)
_NO_MARK = "save it as UTF-8 without a byte order mark, which transformers does not read either"
_TAG, _TAGGED = "__float__", ("Infinity", "-Infinity", "NaN")
# Characters of a path that cannot be one.
_LONGEST_SHOWN = 80
FETCH_AGAIN = "the file is damaged or was not fetched whole: fetch or write it again"


def check_lookable(path: Path, remedy: str) -> None:
    """Raise InputError for a path that cannot be looked at, be it there or not.

    Its name is too long for one, it leads through a folder that is not to be entered, or in a circle.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    except OSError as error:
        name = str(path) if len(str(path)) <= _LONGEST_SHOWN else f"{str(path)[:_LONGEST_SHOWN]}…"
        raise InputError(f"{name} cannot be read: {error.strerror}", remedy) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: Missing, not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing", "give the directory of a whole model") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        remedy = _NO_MARK if "BOM" in str(error) else FETCH_AGAIN
        raise InputError(f"{path} is not readable JSON: {error}", remedy) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, found {type(data).__name__}", FETCH_AGAIN)
    return data


def plain_floats(data: Any) -> Any:
    """What transformers wrote as {"__float__": "Infinity"}, for JSON has no such number, as the number."""
    if isinstance(data, dict):
        if set(data) == {_TAG} and data[_TAG] in _TAGGED:
            return float(data[_TAG])
        return {key: plain_floats(value) for key, value in data.items()}
    return [plain_floats(value) for value in data] if isinstance(data, list) else data


def tagged_floats(data: Any) -> Any:
    """The reverse of `plain_floats`: what is left is JSON for every reader."""
    if isinstance(data, float) and not math.isfinite(data):
        return {_TAG: "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"}
    if isinstance(data, dict):
        return {key: tagged_floats(value) for key, value in data.items()}
    return [tagged_floats(value) for value in data] if isinstance(data, list | tuple) else data


def read_yaml(path: Path, example: str, loader: type[Any] = yaml.SafeLoader) -> Any:
    """What a YAML file holds.

    Args:
        example: What it might hold, for whoever has to mend it.

    Raises:
        InputError: Missing, not UTF-8, not YAML, or a key stands twice.
    """
    try:
        read = loader(path.read_text(encoding="utf-8"))
        node = read.get_single_node()
        _refuse_twice(path, node)
        return None if node is None else read.construct_document(node)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", f"give a file of YAML such as {example}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = "it is not YAML: " if isinstance(error, yaml.YAMLError) else ""
        said = what + " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {said}", f"give YAML such as {example}") from error


def _refuse_twice(path: Path, root: yaml.Node | None) -> None:
    """Raise InputError for a key that a mapping has twice; YAML's readers take the last without a word."""
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))  # nodes may stand for each other, and even for themselves
        if isinstance(node, yaml.MappingNode):
            _refuse_key_twice(path, [key for key, _ in node.value])
            waiting += [value for _, value in node.value]
        else:
            waiting += node.value


def _refuse_key_twice(path: Path, keys: list[yaml.Node]) -> None:
    seen = set()
    for key in keys:
        named = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else (key.tag, str(id(key)))
        if named in seen:
            where = f"{path}, line {key.start_mark.line + 1}"
            raise InputError(f"{where}: the key {key.value!r} stands twice", "keep the one that is meant")
        seen.add(named)


def check_version(
    given: object, where: str | Path, known: int, remedy: str, key: str = "format_version"
) -> None:
    """Raise InputError for a format that this version of kanna cannot read.

    Args:
        known: The newest that it can.
        remedy: Where there is no version.
        key: By which the version is told.
    """
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InputError(f"{where} has no sound {key} (found {given!r})", remedy)
    if given > known:
        raise InputError(f"{where} has {key} {given}; this kanna reads up to {known}", "upgrade kanna")


def validated(model: type[M], data: object, where: str | Path, remedy: str) -> M:
    """`data` as a model has it.

    Raises:
        InputError: Something is missing or wrong; names `where`, and the field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        whole = "" if error.errors()[0]["loc"] else "the file: "
        raise InputError(f"{where}: {whole}{what_is_wrong(error, model)}", remedy) from error


def check_type(
    name: str, value: object, kinds: type | tuple[type, ...], remedy: str, required: bool = False
) -> None:
    """Raise InputError for an argument of another kind than it may be of.

    Args:
        name: Of the argument.
        remedy: What to give.
        required: Whether None, which otherwise stands for what was not given, is refused, too.
    """
    if (value is None and not required) or isinstance(value, kinds):
        return
    known = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    raise InputError(f"{name} must be {known}, found {type(value).__name__}", remedy)
