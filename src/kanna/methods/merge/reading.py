"""Reads a recipe in mergekit's YAML; nothing is ignored without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kanna.errors import InputError, suggestion
from kanna.methods.merge import known
from kanna.methods.merge.documents import ordered
from kanna.methods.merge.recipe import Module, Recipe, Slice, Source, dtype_named
from kanna.methods.merge.references import joined, parsed
from kanna.methods.merge.settings import Setting, read_setting
from kanna.methods.merge.templates import read_template
from kanna.methods.merge.tokens import TokenReader
from kanna.methods.merge.tree import Node, Place, read_documents

_NEAR = 0.8
_NOW = f"what there is now: {', '.join(known.METHODS)}, see docs/merge.md"


def read_recipes(recipe: str | Path | Mapping[str, Any], lax: bool = False) -> tuple[Recipe, ...]:
    """The recipes in a file, or what one would hold; each behind those whose results it takes.

    Args:
        lax: Near misses of known keys, and parameters at the wrong place, are warnings.

    Raises:
        InputError: What is wrong or not supported yet; names the line.
    """
    place, documents = read_documents(recipe)
    if not documents:
        raise InputError(f"{place.name} is empty", _NOW)
    names = {
        str(one.value["name"].value)
        for one in documents
        if isinstance(one.value, dict) and "name" in one.value
    }
    others = frozenset(names if len(documents) > 1 else ())
    return ordered([_Reader(place, lax, others).recipe(one) for one in documents])


def read_recipe(recipe: str | Path | Mapping[str, Any], lax: bool = False) -> Recipe:
    """The one that makes the output; see `read_recipes`."""
    return read_recipes(recipe, lax)[-1]


@dataclass(frozen=True)
class _Around:
    """What holds around a part of a recipe.

    Args:
        method: Its name.
        rule: What the method takes.
        base: The base model.
        shared: See `Slice`.
    """

    method: str
    rule: known.Method
    base: str | None
    shared: tuple[Mapping[str, Setting], ...]


class _Reader:
    """Reads one document, and collects warnings.

    Args:
        place: Where it comes from.
        lax: See `read_recipes`.
        names: Of documents, which stand for models.
    """

    def __init__(self, place: Place, lax: bool, names: frozenset[str] = frozenset()) -> None:
        self.place, self.lax, self._names = place, lax, names
        self.warnings: list[str] = []

    def recipe(self, root: Node) -> Recipe:
        top = self._mapping(root, "a recipe")
        self._check_keys(top, known.KEYS, "at the top")
        method = self._method(root, top)
        rule = known.METHODS[method]
        shared = {**rule.of_all, **rule.of_models}
        outer = (self._parameters(top.get("parameters"), shared, method),)
        base = self._base(top)
        modules = self._layout(root, top, _Around(method, rule, base, outer))
        slices = tuple(one for module in modules for one in module.slices)
        if rule.needs_base:
            self._check_bases(root, slices, method)
        self._check_numbers(root, slices, method)
        tokenizer = TokenReader(self.place, self._reference, self._check_keys).read(top)
        return Recipe(
            self.place,
            method,
            modules,
            base,
            self._dtype(top, "out_dtype") or self._dtype(top, "dtype"),
            tuple(self.warnings),
            root.plain,
            root.line,
            self._name(top.get("name")),
            tokenizer,
            read_template(self.place, top.get("chat_template")),
        )

    def _name(self, node: Node | None) -> str | None:
        if node is None or node.value is None:
            return None
        if isinstance(node.value, dict | list):
            raise self.place.error(node, f"name is a text, found {node.plain!r}", "write name: first")
        return str(node.value)

    def _base(self, entries: Mapping[str, Node]) -> str | None:
        node = entries.get("base_model")
        return None if node is None or node.value is None else self._reference(node)

    def _layout(self, root: Node, top: Mapping[str, Node], around: _Around) -> tuple[Module, ...]:
        given = self._one_of(root, top, known.LAYOUTS, "there are no models")
        if given == "modules":
            return self._modules(top[given], around, top.get("base_model"))
        return (Module(None, self._within_module(top, given, around, top.get("base_model")), root.line),)

    def _one_of(self, node: Node, entries: Mapping[str, Node], keys: tuple[str, ...], none: str) -> str:
        """The one of several keys that is there."""
        given = [key for key in keys if key in entries and entries[key].value is not None]
        if not given:
            raise self.place.error(node, none, "list them under models:")
        if len(given) > 1:
            said = f"{given[0]} and {given[1]} stand beside each other"
            raise self.place.error(entries[given[1]], said, f"give exactly one of {', '.join(keys)}")
        return given[0]

    def _within_module(
        self, entries: Mapping[str, Node], key: str, around: _Around, base: Node | None
    ) -> tuple[Slice, ...]:
        node = entries[key]
        return (self._all_layers(node, around, base),) if key == "models" else self._slices(node, around)

    def _all_layers(self, node: Node, around: _Around, base: Node | None) -> Slice:
        sources = self._sources(node, "models", around)
        if around.base is not None and around.base not in {source.model for source in sources}:
            sources = (Source(around.base, line=0 if base is None else base.line), *sources)
        return Slice(sources, around.base, around.shared, node.line)

    def _modules(self, node: Node, around: _Around, base: Node | None) -> tuple[Module, ...]:
        modules = self._mapping(node, "modules")
        if not modules:
            raise self.place.error(node, "modules is empty", "write modules: {default: {slices: [...]}}")
        return tuple(self._module(name, inner, around, base) for name, inner in modules.items())

    def _module(self, name: str, node: Node, around: _Around, base: Node | None) -> Module:
        module = self._mapping(node, f"the module {name}")
        self._check_keys(module, known.KEYS_OF_MODULE, "in a module")
        given = self._one_of(
            node, module, ("models", "slices"), f"the module {name} has no models and no slices"
        )
        return Module(name, self._within_module(module, given, self._within(module, around), base), node.line)

    def _within(self, entries: Mapping[str, Node], around: _Around) -> _Around:
        """What holds in a part of a recipe that has parameters of its own."""
        rule = around.rule
        own = self._parameters(entries.get("parameters"), {**rule.of_all, **rule.of_models}, around.method)
        return replace(around, shared=(own, *around.shared) if own else around.shared)

    def _slices(self, node: Node, around: _Around) -> tuple[Slice, ...]:
        if not isinstance(node.value, list) or not node.value:
            raise self.place.error(node, "slices is no list", "write - sources: [...] for each")
        return tuple(self._slice(one, around) for one in node.value)

    def _slice(self, node: Node, around: _Around) -> Slice:
        entries = self._mapping(node, "a slice")
        self._check_keys(entries, known.KEYS_OF_SLICE, "in a slice")
        if entries.get("sources") is None:
            raise self.place.error(node, "a slice has no sources", "write sources: [{model: DIR, ...}]")
        inner = self._within(entries, around)
        base = self._base(entries) or around.base
        sources = self._sources(entries["sources"], "sources", around)
        self._check_lengths(sources)
        return Slice(sources, base, inner.shared, node.line)

    def _check_lengths(self, sources: tuple[Source, ...]) -> None:
        """All models of a slice have as many layers in it."""
        ranges = [source.layers for source in sources]
        for source, (first, end) in zip(sources, (given for given in ranges if given), strict=True):
            start, stop = ranges[0] or (0, 0)
            if end - first != stop - start:
                raise self.place.error(
                    Node(None, source.line),
                    f"a slice has {stop - start} layers of {sources[0].model} and {end - first} of "
                    f"{source.model}",
                    "give ranges of the same length",
                )

    def _check_bases(self, root: Node, slices: tuple[Slice, ...], method: str) -> None:
        """Where differences are merged, there is a base in every slice, and something else."""
        for one in slices:
            node = Node(None, one.line)
            if one.base is None:
                said = f"{method} merges differences from a base model"
                raise self.place.error(root, said, "add base_model: DIR")
            if one.base_index < 0:
                remedy = f"add {one.base} to its sources, with the layers that the others differ from"
                raise self.place.error(node, f"the base {one.base} is no source of the slice", remedy)
            if len(one.sources) == 1:
                raise self.place.error(node, "no model but the base is given", "list what is merged into it")

    def _check_numbers(self, root: Node, slices: tuple[Slice, ...], method: str) -> None:
        """As many models as the method takes, and the base among them where it is one of them."""
        rule = known.METHODS[method]
        for one in slices:
            node = Node(None, one.line)
            if rule.base_among and one.base is None:
                said = f"{method} goes from a base model to another"
                raise self.place.error(root, said, "add base_model: DIR, one of the models")
            number = len(one.sources) - (rule.from_base and one.base_index >= 0)
            if number < rule.fewest or (rule.most is not None and number > rule.most):
                base = " beside the base" if rule.from_base and one.base is not None else ""
                few = f"{rule.fewest}" if rule.most == rule.fewest else f"at least {rule.fewest}"
                many = few if rule.most is None or number < rule.fewest else f"{rule.most}"
                among = ", the base among them" if rule.base_among else ""
                said = f"{method} takes {many} model{'' if many == '1' else 's'}{base}{among}, and {number} "
                raise self.place.error(node, f"{said}are given", "give as many, or choose another method")

    def _method(self, root: Node, top: Mapping[str, Node]) -> str:
        if "merge_method" not in top:
            raise self.place.error(root, "there is no merge_method", "add merge_method: linear")
        node = top["merge_method"]
        if not isinstance(node.value, str) or node.value not in known.METHODS:
            said = f"there is no method {node.plain!r}{suggestion(str(node.plain), sorted(known.METHODS))}"
            raise self.place.error(node, said, _NOW)
        return node.value

    def _sources(self, node: Node, what: str, around: _Around) -> tuple[Source, ...]:
        if not isinstance(node.value, list) or not node.value:
            raise self.place.error(node, f"{what} is no list", "write - model: DIR for each")
        sources = tuple(self._source(one, what, around) for one in node.value)
        names = [source.model for source in sources]
        for index, source in enumerate(sources):
            if source.model in names[:index]:
                twice = Node(None, source.line)
                remedy = "give it once, with the sum of its weights"
                raise self.place.error(twice, f"the model {source.model} stands twice", remedy)
        return sources

    def _source(self, node: Node, what: str, around: _Around) -> Source:
        entry = self._mapping(node, "a model")
        keys = known.KEYS_OF_MODEL if what == "models" else known.KEYS_OF_SOURCE
        self._check_keys(entry, keys, "beside model")
        if "model" not in entry:
            raise self.place.error(node, f"an entry of {what} names no model", "write model: DIR")
        rule = around.rule
        parameters = self._parameters(entry.get("parameters"), rule.of_models, around.method, rule.of_all)
        layers = None if what == "models" else self._layers(node, entry.get("layer_range"))
        return Source(self._reference(entry["model"]), parameters, node.line, layers)

    def _layers(self, node: Node, given: Node | None) -> tuple[int, int]:
        remedy = "write layer_range: [0, 8] for the first eight layers"
        if given is None:
            raise self.place.error(node, "a source has no layer_range", remedy)
        match given.plain:
            case [int(first), int(end)] if 0 <= first < end:
                return first, end
        raise self.place.error(given, f"{given.plain!r} is no range of layers", remedy)

    def _reference(self, node: Node) -> str:
        """A directory, or a hub id in the local cache."""
        try:
            given = joined(node.plain)
            parsed(given, self._names)
        except InputError as error:
            raise self.place.error(node, error.problem, error.remedy) from None
        return given

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
            if name in keys:
                continue
            if name in known.PARAMETERS:
                self._mistake(
                    node, f"{name} {where} is not read", f"put it under parameters: {{{name}: ...}}"
                )
            elif place := known.PLACES.get(name):
                self._mistake(node, f"{name} {where} is not read", f"it stands {place}")
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
