"""kanna inspect"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.terminal.asking import Model, Select
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.models.inventory import Skipped
    from kanna.runs.inspect import Entry, InspectResult

# Of modules that are left alone for one reason.
_NAMED = 3
_SPECTRUM = (">effective", ">90 %", ">99 %", ">above noise")
Spectra = Annotated[
    bool, typer.Option("--spectra", help="Compute singular values: effective and energy ranks. Cached.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the spectra (.png, .svg, .pdf). Implies --spectra."),
]


@verb
def inspect(
    session: Session,
    model: Model,
    spectra: Spectra = False,
    plot: Plot = None,
    select: Select = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture that is there.")] = False,
) -> None:
    """List the matrices of a model: roles, shapes, bytes, break-even ranks; spectra if asked for.

    Headers alone are read unless --spectra or --plot is given. -v lists every matrix.
    """
    check_paths([model])
    if plot is not None:
        from kanna.runs.picture import check_picture

        check_picture(plot, force)
    from kanna.runs.inspect import inspect as look
    from kanna.runs.inspect import plot_spectra

    with session.progress() as progress:
        result = look(model, select=select, spectra=spectra or plot is not None, progress=progress)
    session.show(result.to_dict(), lambda console: _render(console, result, session.verbose))
    if plot is not None:
        session.say(f"spectra drawn in {plot_spectra(result, plot)}")


def _render(console: "Console", result: "InspectResult", every: bool) -> None:
    from kanna.reporting.wording import percent, size

    inventory = result.inventory
    tied = "tied" if inventory.tied_embeddings else "not tied"
    console.print(f"{result.model}: {inventory.architecture}, {len(inventory.blocks)} blocks")
    if result.bytes == result.dense_bytes:
        console.print(
            f"{inventory.parameters:,} parameters, {size(result.bytes)} in files, embeddings {tied}"
        )
    else:
        console.print(
            f"{result.stored:,} numbers stored, {size(result.bytes)} in files, embeddings {tied}; "
            f"dense it has {inventory.parameters:,} parameters, {size(result.dense_bytes)}"
        )
    console.print(
        f"matrices below that can be compressed: {size(result.selected_bytes)}, "
        f"{percent(result.selected_bytes / result.bytes)} of the files"
    )
    console.print(_table(result.entries, every))
    refused = Counter(entry.matrix.refused for entry in result.entries if entry.matrix.refused)
    for reason, count in refused.items():
        console.print(f"cannot be compressed: {count} matrices: {reason}")
    for line in _left_alone(inventory.skipped):
        console.print(line)
    if not every:
        console.print("-v lists every matrix, --json everything")


def _left_alone(skipped: Sequence["Skipped"]) -> list[str]:
    """One line for each reason: the modules are named where they are few, else the first of them."""
    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for module in skipped:
        by_reason[module.reason].append(module)
    return [
        f"left alone: {_names(modules)} ({sum(one.parameters for one in modules):,} parameters): {reason}"
        for reason, modules in by_reason.items()
    ]


def _names(modules: Sequence["Skipped"]) -> str:
    more = len(modules) - _NAMED
    return ", ".join(module.name for module in modules[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _table(entries: Sequence["Entry"], every: bool) -> Any:
    """One row for each matrix, or for all of a role that have one shape, dtype and form."""
    from kanna.models.selection import numbers
    from kanna.reporting.console import table
    from kanna.reporting.wording import size

    first = {role: index for index, role in enumerate(dict.fromkeys(e.matrix.role for e in entries))}
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries if every else sorted(entries, key=lambda entry: first[entry.matrix.role]):
        own = (entry.matrix.name,) if every else ()
        groups[entry.matrix.role, _shape(entry), entry.dtype, entry.form, *own].append(entry)
    spectra = any(entry.spectrum for entry in entries)
    smaller = any(entry.bytes != entry.dense_bytes for entry in entries)
    rows = [
        [
            *((group[0].matrix.name,) if every else ()),
            role,
            numbers([entry.matrix.layer for entry in group]),
            *(() if every else (str(len(group)),)),
            shape,
            dtype,
            _form(group),
            size(sum(entry.bytes for entry in group)),
            *((size(sum(entry.dense_bytes for entry in group)),) if smaller else ()),
            str(group[0].matrix.break_even_rank),
            *(_spectrum_cells(group) if spectra else ()),
        ]
        for (role, shape, dtype, *_), group in groups.items()
    ]
    which = ("name", "role", "layer") if every else ("role", "layers", ">count")
    sizes = (">stored", ">if dense") if smaller else (">bytes",)
    headings = (*which, ">shape", "dtype", "form", *sizes, ">break-even")
    return table((*headings, *(_SPECTRUM if spectra else ())), rows)


def _spectrum_cells(group: Sequence["Entry"]) -> list[str]:
    """Smallest to largest over the matrices of a row."""
    spectra = [entry.spectrum for entry in group if entry.spectrum is not None]
    kinds = (
        [round(spectrum.effective_rank) for spectrum in spectra],
        [spectrum.rank_90 for spectrum in spectra],
        [spectrum.rank_99 for spectrum in spectra],
        [spectrum.signal_rank for spectrum in spectra],
    )
    return [_range(values) for values in kinds]


def _range(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _form(group: Sequence["Entry"]) -> str:
    ranks = [entry.rank for entry in group if entry.rank is not None]
    return f"{group[0].form} {_range(ranks)}" if ranks else group[0].form


def _shape(entry: "Entry") -> str:
    return f"{entry.matrix.out_features} x {entry.matrix.in_features}"
