"""kanna explore"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.models.selection import numbers
from kanna.reporting.blocks import Table
from kanna.reporting.wording import percent
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.search.explore import SpaceResult


@verb
def explore(
    session: Session,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Directory or config.json; no weights are needed."),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="The same, as it was called before.", hidden=True)
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="To which every chosen matrix is reduced.")] = 1,
) -> None:
    """Size of the space of (layers, roles) designs, and the shares of parameters it can remove."""
    place = model or space
    if place is None or None not in (model, space):
        raise InputError("one model is explored", "kanna explore MODEL")
    if not place.expanduser().is_file():
        check_paths([place])
    from kanna.search.explore import explore_space

    result = explore_space(place, rank=rank)
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "SpaceResult") -> None:
    from kanna.reporting.console import draw_block

    console.print(f"{result.model}: {result.architecture}, {result.parameters:,} parameters")
    console.print(
        f"designs per rank: (2^{result.layers} - 1)(2^{result.tensors} - 1) = {result.size:,} "
        f"(layers x roles, none empty)"
    )
    for block in (_roles(result), _layers(result), _ladder(result)):
        draw_block(console, block)
    if result.rank == 1:
        console.print(
            "rank 1 leaves a matrix next to nothing: a layer all of whose matrices have it is in effect "
            "deleted, and its residual connection carries the input on"
        )


def _roles(result: "SpaceResult") -> Table:
    headings = ("role", ">matrices", ">parameters", ">of model", ">removed", ">with core stored")
    rows = [
        (role.role, str(role.matrices), f"{role.parameters:,}", percent(role.parameters / result.parameters),
         f"{role.removed:,}", f"{role.removed_with_core:,}")
        for role in result.roles
    ]  # fmt: skip
    return Table(f"Roles, and what is removed at rank {result.rank}", headings, rows)


def _layers(result: "SpaceResult") -> Table:
    same: dict[int, list[int]] = {}
    for layer, count in result.by_layer.items():
        same.setdefault(count, []).append(layer)
    rows = [
        (numbers(layers), f"{count:,}", percent(count / result.parameters)) for count, layers in same.items()
    ]
    return Table("Layers", ("layers", ">parameters of each", ">of model"), rows)


def _ladder(result: "SpaceResult") -> Table:
    with_core = {rung.layers: f"{rung.removed:,}" for rung in result.rungs_with_core}
    rows = [
        (f"{rung.target:g} %", f"{rung.layers} of {result.layers}", f"{rung.removed:,}",
         f"{rung.share:.1f} %", with_core.get(rung.layers, "-"))
        for rung in result.rungs
    ]  # fmt: skip
    headings = (">aim", ">layers", ">removed", ">reached", ">removed, core stored")
    return Table(f"Whole layers at rank {result.rank}, of all parameters", headings, rows)
