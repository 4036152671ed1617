"""A recipe in mergekit's YAML as typed data; nothing is ignored without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanna.errors import InputError, suggestion
from kanna.methods.merge import known
from kanna.methods.merge.settings import Setting, read_setting
from kanna.methods.merge.tree import Node, Place, read_documents

_NEAR = 0.8
_YET = "is not supported yet"
_NOW = f"what there is now: {', '.join(known.METHODS)} over models:, see docs/merge.md"


@dataclass(frozen=True)
class Source:
    """A model that is merged.

    Args:
        model: As the recipe names it.
        parameters: Its own.
        line: Where it stands.
    """

    model: str
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    line: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Args:
        place: Where it comes from.
        method: Name of the method.
        sources: The models; with a base that is not among them, which comes first then.
        base: Name of the base model; None without one.
        parameters: Of all models.
        dtype: Of the output; None for the widest of the inputs.
        warnings: What of it changes nothing.
        document: As it was read.
        line: Where it begins.
    """

    place: Place
    method: str
    sources: tuple[Source, ...]
    base: str | None
    parameters: Mapping[str, Setting]
    dtype: str | None
    warnings: tuple[str, ...]
    document: Mapping[str, Any]
    line: int = 0

    @property
    def rule(self) -> known.Method:
        return known.METHODS[self.method]

    @property
    def first(self) -> str:
        """The model that configuration, tokenizer and all else that is not merged come from."""
        return self.sources[0].model if self.base is None else self.base


def read_recipe(recipe: str | Path | Mapping[str, Any], lax: bool = False) -> Recipe:
    """The recipe in a file, or what one would hold.

    Args:
        lax: Near misses of known keys, and parameters at the wrong place, are warnings.

    Raises:
        InputError: What is wrong or not supported yet; names the line.
    """
    place, documents = read_documents(recipe)
    if not documents:
        raise InputError(f"{place.name} is empty", _NOW)
    if len(documents) > 1:
        raise place.error(
            documents[1], f"a recipe of several documents {_YET}", "run them one after the other"
        )
    return _Reader(place, lax).recipe(documents[0])


class _Reader:
    """Reads one document, and collects warnings.

    Args:
        place: Where it comes from.
        lax: See `read_recipe`.
    """

    def __init__(self, place: Place, lax: bool) -> None:
        self.place, self.lax = place, lax
        self.warnings: list[str] = []

    def recipe(self, root: Node) -> Recipe:
        top = self._mapping(root, "a recipe")
        self._check_keys(top, known.KEYS, "at the top")
        for key in known.KEYS_NOT_YET:
            if key in top:
                raise self.place.error(top[key], f"{key}: {_YET}", _NOW)
        method = self._method(root, top)
        rule = known.METHODS[method]
        if "models" not in top:
            raise self.place.error(root, "there are no models", "list them under models:")
        shared = {**rule.of_all, **rule.of_models}
        parameters = self._parameters(top.get("parameters"), shared, method)
        sources = self._sources(top["models"], rule, method)
        base = self._reference(top["base_model"]) if top.get("base_model") is not None else None
        if rule.needs_base and base is None:
            raise self.place.error(
                root, f"{method} merges differences from a base model", "add base_model: DIR"
            )
        if base is not None and base not in {source.model for source in sources}:
            sources = (Source(base, line=top["base_model"].line), *sources)
        if rule.needs_base and all(source.model == base for source in sources):
            raise self.place.error(
                top["models"], "no model but the base is given", "list what is merged into it"
            )
        return Recipe(
            self.place,
            method,
            sources,
            base,
            parameters,
            self._dtype(top, "out_dtype") or self._dtype(top, "dtype"),
            tuple(self.warnings),
            root.plain,
            root.line,
        )

    def _method(self, root: Node, top: Mapping[str, Node]) -> str:
        if "merge_method" not in top:
            raise self.place.error(root, "there is no merge_method", "add merge_method: linear")
        node = top["merge_method"]
        if node.value in known.NOT_YET:
            raise self.place.error(node, f"the method {node.value} {_YET}", _NOW)
        if not isinstance(node.value, str) or node.value not in known.METHODS:
            there = sorted((*known.METHODS, *known.NOT_YET))
            said = f"there is no method {node.plain!r}{suggestion(str(node.plain), there)}"
            raise self.place.error(node, said, _NOW)
        return node.value

    def _sources(self, node: Node, rule: known.Method, method: str) -> tuple[Source, ...]:
        if not isinstance(node.value, list) or not node.value:
            raise self.place.error(node, "models is no list", "write - model: DIR for each")
        sources = tuple(self._source(one, rule, method) for one in node.value)
        names = [source.model for source in sources]
        for index, source in enumerate(sources):
            if source.model in names[:index]:
                twice = Node(None, source.line)
                remedy = "give it once, with the sum of its weights"
                raise self.place.error(twice, f"the model {source.model} stands twice", remedy)
        return sources

    def _source(self, node: Node, rule: known.Method, method: str) -> Source:
        entry = self._mapping(node, "a model")
        self._check_keys(entry, known.KEYS_OF_MODEL, "beside model")
        if "model" not in entry:
            raise self.place.error(node, "an entry of models names no model", "write model: DIR")
        parameters = self._parameters(entry.get("parameters"), rule.of_models, method, rule.of_all)
        return Source(self._reference(entry["model"]), parameters, node.line)

    def _reference(self, node: Node) -> str:
        """A directory, or a hub id in the local cache."""
        if not isinstance(node.value, str) or not node.value:
            raise self.place.error(node, f"a model that is given by parts {_YET}", "name its directory")
        if not Path(node.value).expanduser().is_dir():
            for sign, what in (("+", "a model with an adapter"), ("@", "a revision of a model")):
                if sign in node.value:
                    said = f"{node.value!r}: {what} {_YET}"
                    raise self.place.error(node, said, "write the model out first, and name its directory")
        return node.value

    def _parameters(
        self,
        node: Node | None,
        used: Mapping[str, known.Parameter],
        method: str,
        elsewhere: Iterable[str] = (),
    ) -> dict[str, Setting]:
        if node is None or node.value is None:
            return {}
        read = {}
        for name, value in self._mapping(node, "parameters").items():
            if name not in used:
                self._idle_parameter(name, value, used, method, elsewhere)
                continue
            parameter = used[name]
            read[name] = read_setting(name, parameter, value, self.place)
            if parameter.idle:
                self._warn(value, f"{name} has no effect: {parameter.idle}")
            if parameter.only is not None and any(v != parameter.only for v in read[name].all_values):
                raise self.place.error(value, f"{name} under {method} {_YET}", f"leave {name} out")
        return read

    def _idle_parameter(
        self,
        name: str,
        node: Node,
        used: Mapping[str, known.Parameter],
        method: str,
        elsewhere: Iterable[str],
    ) -> None:
        if name in elsewhere:
            self._warn(
                node, f"{name} has no effect beside one model: it holds for all, under the parameters below"
            )
        elif name in known.PARAMETERS:
            self._warn(node, f"{name} has no effect under {method}")
        else:
            self._unknown(name, node, [*used, *known.PARAMETERS], "parameter")

    def _check_keys(self, entries: Mapping[str, Node], keys: tuple[str, ...], where: str) -> None:
        """Whatever is not known is said, and what looks like a mistake is one."""
        for name, node in entries.items():
            if name in (*keys, *known.KEYS_NOT_YET):
                continue
            if name in known.PARAMETERS:
                self._mistake(
                    node, f"{name} {where} is not read", f"put it under parameters: {{{name}: ...}}"
                )
            elif name in known.KEYS_OF_SOURCE:
                raise self.place.error(node, f"{name} {where} is not read; slices: {_YET}", _NOW)
            else:
                self._unknown(name, node, keys, "key")

    def _unknown(self, name: str, node: Node, there: Iterable[str], what: str) -> None:
        near = difflib.get_close_matches(name, sorted(set(there)), n=1, cutoff=_NEAR)
        if near:
            said = f"there is no {what} {name}; did you mean {near[0]}?"
            self._mistake(node, said, "mend it, or let it have no effect with --lax")
        else:
            self._warn(node, f"nobody knows the {what} {name}: it has no effect")

    def _mistake(self, node: Node, problem: str, remedy: str) -> None:
        if not self.lax:
            raise self.place.error(node, problem, remedy)
        self._warn(node, problem)

    def _warn(self, node: Node, text: str) -> None:
        self.warnings.append(f"line {node.line}: {text}" if node.line else text)

    def _mapping(self, node: Node, what: str) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            raise self.place.error(node, f"{what} has keys and values, found {node.plain!r}", _NOW)
        return node.value

    def _dtype(self, top: Mapping[str, Node], key: str) -> str | None:
        node = top.get(key)
        if node is None or node.value is None:
            return None
        return dtype_named(
            str(node.value), lambda said, remedy: self.place.error(node, f"{key}: {said}", remedy)
        )


def dtype_named(name: str, error: Any = InputError) -> str:
    """A dtype that an output may have.

    Args:
        error: Makes the error of (problem, remedy).

    Raises:
        InputError: It is none.
    """
    plain = name.removeprefix("torch.")
    if plain not in known.DTYPES:
        raise error(f"there is no dtype {name!r}{suggestion(plain, known.DTYPES)}", "write bfloat16")
    return plain
