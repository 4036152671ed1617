"""YAML with the line that everything stands on, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kanna.errors import InputError

_MERGE = "tag:yaml.org,2002:merge"
_EXAMPLE = "{merge_method: linear, models: [{model: DIR, parameters: {weight: 1}}, ...]}"


@dataclass(frozen=True)
class Node:
    """A value of a recipe.

    Args:
        value: A scalar, a list of nodes, or a mapping of texts to nodes.
        line: Where it begins; 0 for what came from no file.
    """

    value: Any
    line: int

    @property
    def plain(self) -> Any:
        """Without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return [node.plain for node in self.value] if isinstance(self.value, list) else self.value


@dataclass(frozen=True)
class Place:
    """Where a recipe comes from, for messages.

    Args:
        name: Of the file.
    """

    name: str

    def error(self, node: Node, problem: str, remedy: str) -> InputError:
        """An error that names the line."""
        where = f"{self.name}, line {node.line}" if node.line else self.name
        return InputError(f"{where}: {problem}", remedy)


def read_documents(recipe: str | Path | Mapping[str, Any]) -> tuple[Place, list[Node]]:
    """The documents of a recipe: a file, or what it would hold.

    Raises:
        InputError: Missing, not UTF-8, not YAML.
    """
    if isinstance(recipe, Mapping):
        return Place("the recipe"), [_without_lines(recipe)]
    path = Path(recipe).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        documents = _composed(text)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", f"give a file of YAML such as {_EXAMPLE}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {said}", f"give YAML such as {_EXAMPLE}") from error
    return Place(str(path)), documents


def _without_lines(value: Any) -> Node:
    if isinstance(value, Mapping):
        return Node({str(key): _without_lines(item) for key, item in value.items()}, 0)
    if isinstance(value, list | tuple):
        return Node([_without_lines(item) for item in value], 0)
    return Node(str(value) if isinstance(value, Path) else value, 0)


def _composed(text: str) -> list[Node]:
    """All documents that are not empty; aliases, merge keys and repeated keys mean what PyYAML says."""
    loader = yaml.SafeLoader(text)
    try:
        found = []
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                found.append(_node(loader, node, {}))
        return [node for node in found if node.value is not None]
    finally:
        loader.dispose()


def _node(loader: yaml.SafeLoader, node: yaml.Node, known: dict[int, Node | None]) -> Node:
    if id(node) in known:
        seen = known[id(node)]
        if seen is None:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a value holds itself")
        return seen
    known[id(node)] = None
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        read = Node(_mapping(loader, node, known), line)
    elif isinstance(node, yaml.SequenceNode):
        read = Node([_node(loader, item, known) for item in node.value], line)
    else:
        read = Node(loader.construct_object(node), line)
    known[id(node)] = read
    return read


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, known: dict[int, Node | None]
) -> dict[str, Node]:
    """What is merged in gives way to what stands there; of a key that stands twice the last one counts."""
    merged: dict[str, Node] = {}
    own: dict[str, Node] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                read = _node(loader, source, known).value
                if not isinstance(read, dict):
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: << takes a mapping")
                merged = {**read, **merged}
        else:
            name = str(loader.construct_object(key))
            own[name] = Node(_node(loader, value, known).value, key.start_mark.line + 1)
    return {**merged, **own}
