"""What a recipe says of tokens: which the output has, and where rows come from that a model lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kanna.methods.merge.tree import Node, Place

BASE, UNION = "base", "union"
KEYS_OF_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
KEYS_OF_TOKEN = ("source", "force")
_KINDS: Mapping[str, tuple[str, ...]] = {
    "zero": ("kind",),
    "model_token": ("kind", "model", "token", "token_id"),
}
_SOURCE = "write source: base, union, or a model"


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from in models that lack it.

    Args:
        model: As the recipe names it; None for a row of zeros.
        token: Of that model, whose row it is; None for the token itself.
        number: Of that row, in the place of a token.
        force: Whether models that have the token get this row, too.
        line: Where it stands.
    """

    model: str | None
    token: str | None = None
    number: int | None = None
    force: bool = False
    line: int = 0


@dataclass(frozen=True)
class TokenizerRule:
    """Which tokens the output has.

    Args:
        source: "base", "union", or a model whose tokens they are.
        tokens: Token -> where its row comes from.
        multiple: Of which the number of rows is one.
        line: Where it stands.
    """

    source: str
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    multiple: int = 1
    line: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        """Models that rows are taken from, as the recipe names them."""
        return tuple(dict.fromkeys(rule.model for rule in self.tokens.values() if rule.model is not None))


@dataclass(frozen=True)
class TokenReader:
    """Reads what a recipe says of tokens.

    Args:
        place: Where it comes from.
        reference: The model that a node names.
        check_keys: Says what is not known among the keys of a mapping: (mapping, keys, where).
    """

    place: Place
    reference: Callable[[Node], str]
    check_keys: Callable[[Mapping[str, Node], tuple[str, ...], str], None]

    def read(self, top: Mapping[str, Node]) -> TokenizerRule | None:
        """None where the recipe says nothing.

        Raises:
            InputError: What it says is no rule; names the line.
        """
        plain, full = (_given(top, key) for key in ("tokenizer_source", "tokenizer"))
        if plain is not None and full is not None:
            said = "tokenizer and tokenizer_source stand beside each other"
            raise self.place.error(full, said, "give one of them")
        if plain is not None:
            return TokenizerRule(self._source(plain), line=plain.line)
        return None if full is None else self._full(full)

    def _full(self, node: Node) -> TokenizerRule:
        entries = self._mapping(node, "tokenizer", _SOURCE)
        self.check_keys(entries, KEYS_OF_TOKENIZER, "under tokenizer")
        source, tokens = _given(entries, "source"), _given(entries, "tokens")
        rules = {} if tokens is None else self._mapping(tokens, "tokens", "write TOKEN: {source: MODEL}")
        return TokenizerRule(
            UNION if source is None else self._source(source),
            {token: self._rule(token, one) for token, one in rules.items()},
            self._multiple(_given(entries, "pad_to_multiple_of")),
            node.line,
        )

    def _source(self, node: Node) -> str:
        return str(node.value) if node.value in (BASE, UNION) else self.reference(node)

    def _multiple(self, node: Node | None) -> int:
        if node is None:
            return 1
        if not isinstance(node.value, int) or isinstance(node.value, bool) or node.value < 1:
            said = f"pad_to_multiple_of is a whole number from 1 on, found {node.plain!r}"
            raise self.place.error(node, said, "write pad_to_multiple_of: 64")
        return node.value

    def _rule(self, token: str, node: Node) -> TokenRule:
        entries = self._mapping(node, f"the rule of {token!r}", "write {source: MODEL}")
        self.check_keys(entries, KEYS_OF_TOKEN, f"in the rule of {token!r}")
        source, force = _given(entries, "source"), _given(entries, "force")
        if source is None:
            raise self.place.error(node, f"the rule of {token!r} has no source", "write {source: MODEL}")
        if force is not None and not isinstance(force.value, bool):
            raise self.place.error(
                force, f"force is true or false, found {force.plain!r}", "write force: true"
            )
        forced = force is not None and force.value
        if not isinstance(source.value, dict):
            return TokenRule(self.reference(source), force=forced, line=source.line)
        return self._by_kind(token, source, forced)

    def _by_kind(self, token: str, node: Node, force: bool) -> TokenRule:
        entries: dict[str, Node] = node.value
        kind = entries.get("kind", Node(None, node.line)).value
        if kind not in _KINDS:
            said = f"the source of {token!r} is of the kind {kind!r}"
            raise self.place.error(node, said, f"write kind: {' or kind: '.join(_KINDS)}")
        self.check_keys(entries, _KINDS[kind], f"in the source of {token!r}")
        if kind == "zero":
            return TokenRule(None, force=force, line=node.line)
        model, name, number = (_given(entries, key) for key in ("model", "token", "token_id"))
        if model is None or (name is None) is (number is None):
            said = f"the source of {token!r} is no token of a model"
            raise self.place.error(
                node, said, "write {kind: model_token, model: DIR, token: TOKEN}, or token_id"
            )
        if number is not None and (type(number.value) is not int or number.value < 0):
            raise self.place.error(
                number, f"token_id is a number, found {number.plain!r}", "write token_id: 0"
            )
        return TokenRule(
            self.reference(model),
            None if name is None else str(name.value),
            None if number is None else number.value,
            force,
            node.line,
        )

    def _mapping(self, node: Node, what: str, remedy: str) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            raise self.place.error(node, f"{what} has keys and values, found {node.plain!r}", remedy)
        return node.value


def _given(entries: Mapping[str, Node], key: str) -> Node | None:
    node = entries.get(key)
    return None if node is None or node.value is None else node
