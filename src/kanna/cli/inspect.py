"""kanna inspect"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.terminal.options import Model, Select
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.inspect import Entry, InspectResult

Spectra = Annotated[
    bool, typer.Option("--spectra", help="Compute singular values: effective and energy ranks. Cached.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the spectra (.png, .svg, .pdf). Implies --spectra."),
]


@verb
def inspect(
    session: Session, model: Model, spectra: Spectra = False, plot: Plot = None, select: Select = None
) -> None:
    """List the matrices of a model: roles, shapes, bytes, break-even ranks; spectra if asked for.

    Headers alone are read unless --spectra or --plot is given. -v lists every matrix.
    """
    from kanna.runs.inspect import inspect as look
    from kanna.runs.plots import check_picture, plot_spectra

    if plot is not None:
        check_picture(plot)
    with session.progress() as progress:
        result = look(model, select=select, spectra=spectra or plot is not None, progress=progress)
    session.show(result.to_dict(), lambda console: _render(console, result, session.verbose))
    if plot is not None:
        session.say(f"spectra drawn in {plot_spectra(result, plot)}")


def _render(console: "Console", result: "InspectResult", every: bool) -> None:
    from kanna.terminal.tables import percent, size

    found = result.inventory
    tied = "tied" if found.tied_embeddings else "not tied"
    console.print(f"{result.model}: {found.architecture}, {len(found.blocks)} blocks")
    console.print(f"{found.parameters:,} parameters, {size(result.bytes)} in files, embeddings {tied}")
    console.print(
        f"matrices below that can be compressed: {size(result.selected_bytes)}, "
        f"{percent(result.selected_bytes / result.bytes)} of the files"
    )
    console.print(_per_matrix(result.entries) if every else _per_role(result.entries))
    _render_refused(console, result.entries)
    _render_skipped(console, result)
    if not every:
        console.print("-v lists every matrix, --json everything")


def _per_matrix(entries: Sequence["Entry"]) -> Any:
    from kanna.terminal.tables import size, table

    spectra = any(entry.spectrum for entry in entries)
    rows = [
        [
            str(entry.matrix.layer),
            entry.matrix.role,
            entry.matrix.name,
            _shape(entry),
            entry.dtype,
            _form([entry]),
            size(entry.bytes),
            str(entry.matrix.break_even_rank),
            *(_spectrum_cells([entry]) if spectra else ()),
        ]
        for entry in entries
    ]
    headings = (">layer", "role", "name", ">shape", "dtype", "form", ">bytes", ">break-even")
    return table((*headings, *_spectrum_headings(spectra)), rows)


def _per_role(entries: Sequence["Entry"]) -> Any:
    """One row for all matrices of a role that have one shape, dtype and form."""
    from kanna.models.selection import numbers
    from kanna.terminal.tables import size, table

    first = {role: index for index, role in enumerate(dict.fromkeys(e.matrix.role for e in entries))}
    groups: dict[tuple[str, str, str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: first[entry.matrix.role]):
        groups[entry.matrix.role, _shape(entry), entry.dtype, entry.form].append(entry)
    spectra = any(entry.spectrum for entry in entries)
    rows = [
        [
            role,
            numbers([entry.matrix.layer for entry in group]),
            str(len(group)),
            shape,
            dtype,
            _form(group),
            size(sum(entry.bytes for entry in group)),
            str(group[0].matrix.break_even_rank),
            *(_spectrum_cells(group) if spectra else ()),
        ]
        for (role, shape, dtype, _), group in groups.items()
    ]
    headings = ("role", "layers", ">count", ">shape", "dtype", "form", ">bytes", ">break-even")
    return table((*headings, *_spectrum_headings(spectra)), rows)


def _spectrum_headings(spectra: bool) -> tuple[str, ...]:
    return (">effective", ">90 %", ">99 %", ">above noise") if spectra else ()


def _spectrum_cells(group: Sequence["Entry"]) -> list[str]:
    """Smallest to largest over the matrices of a row."""
    found = [entry.spectrum for entry in group if entry.spectrum is not None]
    kinds = (
        [round(one.effective_rank) for one in found],
        [one.rank_90 for one in found],
        [one.rank_99 for one in found],
        [one.signal_rank for one in found],
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


def _render_refused(console: "Console", entries: Sequence["Entry"]) -> None:
    reasons: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry.matrix.refused:
            reasons[entry.matrix.refused] += 1
    for reason, count in reasons.items():
        console.print(f"cannot be compressed: {count} matrices: {reason}")


def _render_skipped(console: "Console", result: "InspectResult") -> None:
    for one in result.inventory.skipped:
        console.print(f"left alone: {one.name} ({one.parameters:,} parameters): {one.reason}")
