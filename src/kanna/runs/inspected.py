"""What was found in a model, as blocks for a console or a notebook."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from kanna.models.inventory import Skipped
from kanna.models.selection import numbers
from kanna.reporting.blocks import Block, Paragraph, Section, Table
from kanna.reporting.wording import percent, size
from kanna.runs.inspect import Entry, InspectResult

# Of modules that are left alone for one reason.
_NAMED = 3
_SPECTRUM = (">effective", ">90 %", ">99 %", ">above noise")


def section(result: InspectResult, every: bool = False) -> Section:
    """What a model is made of, and a row for each role; or for every matrix."""
    inventory = result.inventory
    refused = Counter(entry.matrix.refused for entry in result.entries if entry.matrix.refused)
    lines = [
        *(f"cannot be compressed: {count} matrices: {reason}" for reason, count in refused.items()),
        *_left_alone(inventory.skipped),
    ]
    blocks: list[Block] = [Paragraph([line]) for line in _sizes(result)]
    blocks += [_table(result.entries, every), *(Paragraph([line]) for line in lines)]
    return Section(f"{result.model}: {inventory.architecture}, {len(inventory.blocks)} blocks", blocks)


def _sizes(result: InspectResult) -> list[str]:
    parameters, tied = result.inventory.parameters, "tied" if result.inventory.tied_embeddings else "not tied"
    whole = f"{size(result.bytes)} in files, embeddings {tied}"
    counted = f"{parameters:,} parameters, {whole}"
    if result.bytes != result.dense_bytes:
        counted = (
            f"{result.stored:,} numbers stored, {whole}; dense it has {parameters:,} parameters, "
            f"{size(result.dense_bytes)}"
        )
    share = percent(result.selected_bytes / result.bytes)
    chosen = f"matrices below that can be compressed: {size(result.selected_bytes)}, {share} of the files"
    return [counted, chosen]


def _left_alone(skipped: Sequence[Skipped]) -> list[str]:
    """One line for each reason: the modules are named where they are few, else the first of them."""
    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for module in skipped:
        by_reason[module.reason].append(module)
    return [
        f"left alone: {_names(modules)} ({sum(one.parameters for one in modules):,} parameters): {reason}"
        for reason, modules in by_reason.items()
    ]


def _names(modules: Sequence[Skipped]) -> str:
    more = len(modules) - _NAMED
    return ", ".join(module.name for module in modules[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _table(entries: Sequence[Entry], every: bool) -> Table:
    """One row for each matrix, or for all of a role that have one shape, dtype and form."""
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
    return Table("", (*headings, *(_SPECTRUM if spectra else ())), rows)


def _spectrum_cells(group: Sequence[Entry]) -> list[str]:
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


def _form(group: Sequence[Entry]) -> str:
    ranks = [entry.rank for entry in group if entry.rank is not None]
    return f"{group[0].form} {_range(ranks)}" if ranks else group[0].form


def _shape(entry: Entry) -> str:
    return f"{entry.matrix.out_features} x {entry.matrix.in_features}"
