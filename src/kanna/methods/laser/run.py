"""Rank reductions from Python."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kanna.heard import Listener, heard
from kanna.methods.laser import METHOD
from kanna.methods.laser.apply import Spectrum
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.plan import Plan
from kanna.runs.criteria import Criteria
from kanna.runs.opened import Opened
from kanna.runs.request import Call, Origin, Request
from kanna.runs.runner import RunResult, carry_out, carry_out_within
from kanna.tasks.options import EvalOptions


@dataclass(frozen=True, repr=False)
class LaserResult(RunResult):
    """What an application of edits did; see `RunResult`."""

    @property
    def spectra(self) -> tuple[Spectrum, ...]:
        """Of each matrix that was truncated whole."""
        return tuple(Spectrum(**spectrum) for spectrum in self.details.get("spectra", ()))


def laser_apply(
    model: str | Path,
    out: str | Path | None,
    config: LaserConfig,
    *,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    origin: Origin | None = None,
    within: Path | None = None,
    opened: Opened | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Listener = False,
) -> LaserResult:
    """Reduce matrices of a model and write the result; memory is a few of the largest matrices.

    Without edits, or with rank full, every tensor is bit-identical and nothing is decomposed.

    Args:
        model: Directory, or hub id in the local cache; dense or in low-rank forms.
        out: Where the result goes; may be None for a dry run.
        resume: Continue an unfinished run for `out`.
        criteria: Tasks on which the result is compared with `model`; the verdict is recorded.
        origin: How the edits were found; None for edits given by hand.
        within: The folder of unfinished work of the search that this is the end of.
        opened: The model as that search opened it.

    Returns:
        What was done, with the verdict in `comparison`, where `criteria` were given.

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    progress = heard(progress)
    request = Request(
        model,
        out,
        (Call(METHOD, config, origin or Origin()),),
        criteria=criteria,
        options=options or EvalOptions(device=device),
        cache=cache,
        force=force,
        resume=resume,
        dry_run=dry_run,
        opened=opened,
    )
    tell: Any = announce
    run = carry_out if within is None else partial(carry_out_within, directory=within)
    return LaserResult(**vars(run(request, announce=tell, progress=progress)))
