"""Pick matrices by an expression such as ``mlp``, ``q,k,v@4-`` or ``down@-1``.

Grammar::

    expression := group { (";" | ",") group } | "re:" REGEX
    group      := ["!"] role { "," ["!"] role } [ "@" layers { "," layers } ]
    layers     := N | N-M | N-            (from 0; negative N counts from the end)

``@`` binds to every role listed before it in its group. A role after layers begins a new group, as does
``;``: ``q,k,v@4-,down@-1`` is ``q,k,v`` from layer 4 on and ``down`` of the last layer; ``mlp;q@3`` is the
whole ``mlp`` and ``q`` of layer 3, where ``mlp,q@3`` would be both of layer 3 only.
``!`` leaves out: ``all,!down@0`` is everything but ``down`` of layer 0, and so is ``!down@0`` alone; it is
written before every role that is left out, which form groups of their own: ``all,!q,!k@0-3``.
A role is one that the model has, or ``all``, ``attn``, ``mlp``, ``mlp_in``, ``mlp_gate``, ``mlp_up``,
``mlp_out``. ``re:`` takes the rest of the expression and searches it in the matrices' names.
Layers of an encoder-decoder are those of the encoder, then those of the decoder, where ``q`` is that of
self-attention and that of the attention to what was encoded; ``re:`` tells them apart.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.models.matrix import Matrix

ALIASES: dict[str, tuple[str, ...]] = {
    "mlp_in": ("gate", "fc_in"),
    "mlp_gate": ("gate",),
    "mlp_up": ("up",),
    "mlp_out": ("down", "fc_out"),
}
GROUPS = ("all", "attn", "mlp")

_LAYERS = re.compile(r"(?P<first>-?\d+)(?:(?P<range>-)(?P<last>-?\d+)?)?")


@dataclass(frozen=True)
class Group:
    """Roles, and the layer expressions that bind to them; no layers means every layer.

    Args:
        left_out: What they name is taken away from what the other groups name.
    """

    roles: tuple[str, ...]
    layers: tuple[str, ...]
    left_out: bool = False


def select(matrices: Sequence[Matrix], expression: str) -> tuple[Matrix, ...]:
    """The matrices that `expression` names and that can be compressed, in their order.

    Refused matrices are left out as long as something else matches.

    Raises:
        InputError: A role or layer that the model does not have, a part that matches nothing, or nothing but
            refused matrices.
    """
    matched = match(matrices, expression)
    chosen = tuple(matrix for matrix in matched if not matrix.refused)
    if not chosen:
        raise InputError(
            f"{expression!r} matches only what cannot be compressed: {matched[0].name} and "
            f"{len(matched) - 1} more; {matched[0].refused}",
            f"choose from {_roles_of(m for m in matrices if not m.refused)}",
        )
    return chosen


def match(matrices: Sequence[Matrix], expression: str) -> tuple[Matrix, ...]:
    """Like `select`, with refused matrices among the result."""
    text = expression.strip()
    if text.startswith("re:"):
        return _match_regex(matrices, text.removeprefix("re:"))
    groups = parse(text)
    taken: set[str] = set()
    left_out: set[str] = set()
    for group in groups:
        layers = _layer_numbers(matrices, group.layers)
        named = {m.name for role in group.roles for m in _match_role(matrices, role, layers)}
        (left_out if group.left_out else taken).update(named)
    if all(group.left_out for group in groups):
        taken = {matrix.name for matrix in matrices}
    chosen = tuple(matrix for matrix in matrices if matrix.name in taken - left_out)
    if not chosen:
        raise InputError(f"{expression!r} leaves out all that it names", "leave out less")
    return chosen


def selection_from(layers: str | None = None, matrices: str = "all") -> str:
    """The expression for ``--layers`` and ``--matrices``.

    Raises:
        InputError: `matrices` holds layers, a regular expression, or more than one group.
    """
    if layers is None:
        return matrices
    if any(mark in matrices for mark in ("@", ";", "re:")):
        raise InputError(
            f"--layers needs plain roles in --matrices, found {matrices!r}",
            "write the layers into one selection instead, such as 'q,k,v@4-,down@-1'",
        )
    return f"{matrices}@{layers}"


def check_expression(expression: str) -> None:
    """Raise InputError for an expression that cannot be read, whatever model it is of."""
    text = expression.strip()
    if text.startswith("re:"):
        _compiled(text.removeprefix("re:"))
    else:
        parse(text)


def parse(expression: str) -> tuple[Group, ...]:
    """The groups of an expression without ``re:``.

    Raises:
        InputError: An empty expression or item, or layers that cannot be read.
    """
    return tuple(group for part in expression.split(";") for group in _parse_part(part, expression))


def _parse_part(part: str, expression: str) -> list[Group]:
    groups: list[Group] = []
    roles: list[str] = []
    layers: list[str] = []
    left_out = False
    for item in (piece.strip() for piece in part.split(",")):
        role, mark, layer = (piece.strip() for piece in item.partition("@"))
        if layers and _LAYERS.fullmatch(item):
            layers.append(item)
            continue
        without = role.startswith("!")
        role = role.removeprefix("!").strip()
        if layers or (roles and without != left_out):
            groups.append(Group(tuple(roles), tuple(layers), left_out))
            roles, layers = [], []
        left_out = without
        if not role or (mark and not _LAYERS.fullmatch(layer)) or _LAYERS.fullmatch(role):
            raise _unreadable(item, expression)
        roles.append(role)
        layers = [layer] if mark else []
    return [*groups, Group(tuple(roles), tuple(layers), left_out)]


def _unreadable(item: str, expression: str) -> InputError:
    return InputError(
        f"cannot read {item!r} in the selection {expression!r}",
        "write roles, then @ and layers: 'mlp', 'q,k,v@4-', 'down@-1', 'all,!down@0', or 're:REGEX'",
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}", "mend the pattern") from error


def _match_regex(matrices: Sequence[Matrix], pattern: str) -> tuple[Matrix, ...]:
    searched = _compiled(pattern)
    matched = tuple(matrix for matrix in matrices if searched.search(matrix.name))
    if not matched:
        example = f"names look like {matrices[0].name}" if matrices else "there are no matrices"
        raise InputError(f"no matrix has a name that matches {pattern!r}", example)
    return matched


def _match_role(matrices: Sequence[Matrix], role: str, layers: frozenset[int]) -> list[Matrix]:
    wanted = _wanted(role)
    of_role = [matrix for matrix in matrices if wanted(matrix)]
    if not of_role:
        raise InputError(f"no matrix has the role {role!r}", f"this model has {_roles_of(matrices)}")
    matched = [matrix for matrix in of_role if matrix.layer in layers]
    if not matched:
        raise InputError(
            f"{role!r} occurs in no layer of {numbers(layers)}",
            f"it occurs in layers {numbers(m.layer for m in of_role)}",
        )
    return matched


def _wanted(role: str) -> Callable[[Matrix], bool]:
    if role == "all":
        return lambda matrix: True
    if role in GROUPS:
        return lambda matrix: matrix.group == role
    roles = ALIASES.get(role, (role,))
    return lambda matrix: matrix.role in roles


def _layer_numbers(matrices: Sequence[Matrix], layers: Sequence[str]) -> frozenset[int]:
    existing = frozenset(matrix.layer for matrix in matrices)
    if not layers:
        return existing
    depth = max(existing, default=-1) + 1
    return frozenset(number for text in layers for number in _layer_range(text, depth))


def _layer_range(text: str, depth: int) -> range:
    parsed = _LAYERS.fullmatch(text)
    if parsed is None:
        raise _unreadable(text, text)
    first = _layer_number(parsed["first"], depth)
    if not parsed["range"]:
        return range(first, first + 1)
    last = _layer_number(parsed["last"], depth) if parsed["last"] else depth - 1
    if last < first:
        raise InputError(f"the layers {text} run backwards", f"write {last}-{first}")
    return range(first, last + 1)


def _layer_number(text: str, depth: int) -> int:
    number = int(text)
    if not -depth <= number < depth:
        raise InputError(
            f"there is no layer {number}", f"the model has layers 0-{depth - 1}, or -{depth} to -1"
        )
    return number % depth


def _roles_of(matrices: Iterable[Matrix]) -> str:
    roles = dict.fromkeys(matrix.role for matrix in matrices)
    return f"{', '.join(roles)}; or {', '.join(GROUPS)}, {', '.join(ALIASES)}, re:REGEX"


def numbers(layers: Iterable[int]) -> str:
    """Sorted numbers with runs drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(layers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
