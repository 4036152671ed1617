"""Matrices as a map over layers and roles: of each place what was measured of the matrices there."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kanna.models.families import UNGATED, role_of
from kanna.models.matrix import role_key
from kanna.reporting import heatmap
from kanna.reporting.blocks import COMPUTED, Chart, Table
from kanna.reporting.wording import percent

# Deepest colour, in %, of a map on which everything is 0.
_ANY = 1.0
# A tip that names more is not read.
_MOST_NAMED = 4
# The two factors of a matrix of low rank, each a module.
_FACTOR = re.compile(r"\.(reduce|expand)$")

Place = tuple[int, str]


@dataclass(frozen=True)
class Spot:
    """What was measured of one matrix.

    Args:
        path: Of its module, with `#q` for a slice.
        value: A share of something, from 0.
        tip: The same in words.
    """

    path: str
    value: float
    tip: str


def placed(paths: Collection[str], known: Collection[str] = ()) -> dict[str, Place]:
    """(layer, role) of the paths of modules; blocks of a second stack are counted on from the first.

    Args:
        known: The roles that the inventory had; without them `up` and `down` are gated if a gate is there.
    """
    stacks: dict[str, set[int]] = defaultdict(set)
    for stack, number in map(_block, paths):
        stacks[stack].add(number)
    first, count = {}, 0
    for stack in sorted(stacks, key=lambda name: ("decoder" in name, name)):
        first[stack], count = count, count + max(stacks[stack]) + 1
    roles = _roles(paths, known)
    found = {}
    for path in paths:
        stack, number = _block(path)
        found[path] = first[stack] + number, roles[path]
    return found


def role_map(
    title: str,
    spots: Sequence[Spot],
    unit: str,
    caption: str,
    table: Table | None = None,
    known: Collection[str] = (),
) -> Chart:
    """A map of the mean of each place.

    Args:
        unit: What the numbers are, in %.
        table: The same as a table, in place of one by layers and roles.
        known: The roles that the inventory had, where they are told.
    """
    places = placed([spot.path for spot in spots], known)
    layers = sorted({layer for layer, _ in places.values()})
    roles = sorted({role for _, role in places.values()}, key=role_key)
    here: dict[Place, list[Spot]] = defaultdict(list)
    for spot in spots:
        here[places[spot.path]].append(spot)
    tiles = [
        heatmap.Tile(layers.index(layer), roles.index(role), 100 * _mean(some), _tip(some))
        for (layer, role), some in sorted(here.items())
    ]
    deepest = max((tile.change or 0.0 for tile in tiles), default=0.0) or _ANY
    axes = heatmap.Axis("layer", list(map(str, layers))), heatmap.Axis("role", roles)
    drawing = heatmap.heatmap(title, *axes, tiles, deepest, unit, signed=False)
    if any(len(some) > 1 for some in here.values()):
        caption = f"{caption} Where several matrices are of one role in a layer, their mean."
    return Chart(title, drawing, caption, [], table or _table(title, here, layers, roles))


def _block(path: str) -> tuple[str, int]:
    """The stack that a module is in, and its number there: what stands before the first number, and that."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return ("", 0) if first is None else (".".join(parts[:first]), int(parts[first]))


def _roles(paths: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Of all matrices, named as the inventory names them: both layers of a plain feed-forward network."""
    roles = {path: _role(path) for path in paths}
    gates, both = {"gate", "gate_up"} & {*roles.values()}, UNGATED.keys() <= {*roles.values()}
    plain = not UNGATED.keys() & {*known} if known else both and not gates
    return {path: UNGATED.get(role, role) for path, role in roles.items()} if plain else roles


def _role(path: str) -> str:
    module, _, part = path.partition("#")
    slice_of = part.rpartition(".")[2]  # of an expert its number, or number and slice
    return slice_of if slice_of and not slice_of.isdecimal() else role_of(_FACTOR.sub("", module))


def _mean(spots: Sequence[Spot]) -> float:
    return sum(spot.value for spot in spots) / len(spots)


def _tip(spots: Sequence[Spot]) -> str:
    told = "; ".join(spot.tip for spot in spots[:_MOST_NAMED])
    more = len(spots) - _MOST_NAMED
    return f"{told}; and {more:,} more" if more > 0 else told


def _table(
    title: str, here: Mapping[Place, Sequence[Spot]], layers: Sequence[int], roles: Sequence[str]
) -> Table:
    shown = {place: percent(_mean(some)) for place, some in here.items()}
    rows = [[str(layer), *(shown.get((layer, role), "") for role in roles)] for layer in layers]
    return Table(title, ["layer", *(f">{role}" for role in roles)], rows, COMPUTED)
