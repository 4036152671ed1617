"""Export to a format that other programs read whole numbers from: codes are written as they are.

This is no step: what is written is no model of kanna, so kanna neither judges it on tasks nor compresses it
further. It has a lineage and a card, takes its name when it is whole, and replaces nothing unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kanna.checkpoint import card, lineage
from kanna.checkpoint.applied import ACTIVE
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.export.check import Check, check
from kanna.methods.export.formats import target as format_of
from kanna.methods.export.formats.target import Target
from kanna.methods.export.held import Held, layers_of, scales_of
from kanna.progress import Progress
from kanna.quant.half import Halved, halved
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.opened import Opened
from kanna.runs.source import Source
from kanna.runs.unfinished import sole_writer


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        out: The directory; None for a dry run.
        format: Its name.
        layers: How many are in whole numbers.
        bytes: Of the weights.
        scales: What float16 made of the scales; None for a format that holds them as they are.
        used: Name of the set of scales that is multiplied in; None for those of the base.
        check: What reloading showed; None where it was not asked for.
    """

    out: Path | None
    format: str
    layers: int
    bytes: int
    scales: Halved | None
    used: str | None = None
    check: Check | None = field(default=None)

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self.check is None or self.check.passed is not False

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "export",
            "out": None if self.out is None else str(self.out),
            **self.figures,
        }

    @property
    def figures(self) -> dict[str, Any]:
        """All but where it lies."""
        return {
            "format": self.format,
            "layers": self.layers,
            "bytes": self.bytes,
            "scales_used": self.used,
            "scales": None if self.scales is None else asdict(self.scales),
            "check": None if self.check is None else self.check.to_dict(),
        }

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.layers} layers of whole numbers as {self.format}, their codes as they are"]
        if self.used is not None:
            found.append(f"with the set of scales {self.used!r}")
        if self.scales is not None:
            found.append(_of_scales(self.scales))
        return found if self.check is None else [*found, self.check.line]


def export_quantized(
    model: str | Path,
    out: str | Path | None,
    format: str,
    *,
    scales: str | None = ACTIVE,
    check: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Listener = False,
) -> Exported:
    """Write a model of whole numbers for programs that do not know kanna; nothing is quantised again.

    Args:
        model: What `kanna quantize` wrote.
        out: New directory; may be None for a dry run.
        format: "compressed-tensors", "gguf", "mlx", "gptq" or "awq".
        scales: Name of a set of scales that is multiplied in, "base" for none; by default the one in use.
        check: Reload it with the loader it is for, and compare logits and a continuation with kanna's own.

    Returns:
        What was written, and what a check found.

    Raises:
        InputError: What the format cannot hold, by the name of the layer; before anything is written.
    """
    progress = heard(progress)
    target = format_of(format)
    source = Source.open(Opened.open(model, finite=True, scales=scales))
    source.check_forms(None, "export", "")
    _ = source.lineage  # compares the files with what was recorded
    layers = layers_of(source)
    source.check_shapes()
    source.check_whole()
    target.refuse(source, layers)
    halves = _halved(source, layers, target) if target.half else None
    used = None if source.opened.scales is None else source.opened.scales.name
    planned = Exported(None, target.name, len(layers), target.bytes(source, layers), halves, used)
    if dry_run:
        return planned
    if out is None:
        raise InputError("no output directory was given", "add --out DIR")
    place = final_name(out)
    refuse_input(place, source.directory)
    refuse_existing(place, force)
    _ = source.hash  # reads all bytes; numbers that are not finite are named
    with sole_writer(place, force):
        return _written(source, layers, target, planned, place, check, force, progress)


def _written(
    source: Source,
    layers: Sequence[Held],
    target: Target,
    planned: Exported,
    place: Path,
    wanted: bool,
    force: bool,
    progress: Progress,
) -> Exported:
    with output_directory(place, force=force, needed_bytes=planned.bytes) as partial:
        target.write(partial, source, layers, progress)
        found = None
        if wanted:
            progress("check", 0, 1)
            found = check(partial, target, source, layers)
            progress("check", 1, 1)
        done = replace(planned, out=place, check=found)
        card.write(partial, _card(source, done, place))
        _record(partial, source, done)
    return done


def _halved(source: Source, layers: Sequence[Held], target: Target) -> Halved:
    """What float16 will make of all scales.

    Raises:
        InputError: Some are too large for it.
    """
    total = Halved()
    for layer in layers:
        found = halved(scales_of(source, layer))
        if found.overflowed:
            raise InputError(
                f"{found.overflowed} scales of {layer.path} are too large for float16, in which "
                f"{target.name} holds them",
                "use --format mlx, which holds them in float32, or --format dense",
            )
        total += found
    return total


def _of_scales(found: Halved) -> str:
    if not found.rounded:
        return f"scales: all {found.scales:,} are the same in float16"
    gone = f", {found.vanished:,} vanish" if found.vanished else ""
    return (
        f"scales: {found.rounded:,} of {found.scales:,} rounded to float16{gone}, "
        f"the largest relative change {found.largest:.1e}"
    )


def _record(partial: Path, source: Source, done: Exported) -> None:
    known = source.lineage
    step = lineage.Step(
        method="export",
        config={"format": done.format, "check": done.check is not None, "scales": done.used},
        versions=lineage.versions(),
        threads=torch.get_num_threads(),
        scores={
            "model_bytes_before": source.checkpoint.bytes,
            "model_bytes_after": done.bytes,
            **done.figures,
            **({} if source.opened.scales_name is None else {"set_of_scales": source.opened.scales_name}),
        },
    )
    base = lineage.Base(name=source.name, hash=source.hash) if known is None else known.base
    lineage.write(partial, base, (*(() if known is None else known.steps), step))


def _card(source: Source, done: Exported, place: Path) -> card.Card:
    known = source.lineage
    said = [f"{line}." for line in done.lines()]
    rows = [("format", done.format), ("layers in whole numbers", done.layers), ("bytes", f"{done.bytes:,}")]
    return card.Card(
        title=place.name,
        base_model=source.name if known is None else known.base.name,
        summary=" ".join([f"{source.name} for programs that read {done.format}.", *said]),
        tables=[card.Table("What it is", ("what", "value"), rows)],
        tags=("quantized",),
        needs_kanna=False,
        source=source.directory,
    )
