"""Export from Python."""

from dataclasses import dataclass
from pathlib import Path

from kanna.checkpoint.applied import ACTIVE
from kanna.heard import Listener, heard
from kanna.methods.export import METHOD
from kanna.methods.export.config import ExportConfig
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import RunResult, carry_out
from kanna.tasks.options import EvalOptions


@dataclass(frozen=True, repr=False)
class ExportResult(RunResult):
    """What was written; see `RunResult`."""

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return int(self.figures["model_bytes_after"])


def export_dense(
    model: str | Path,
    out: str | Path,
    *,
    scales: str | None = ACTIVE,
    force: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    progress: Listener = False,
) -> ExportResult:
    """Multiply every form out, and compare the result with `model` if criteria are given.

    Args:
        scales: Name of a set of scales that is multiplied in, "base" for none; by default the one in use.

    Returns:
        What was done; `out` is the directory.

    Raises:
        InputError: Whatever is wrong with the model, a task or the request, before anything is written.
    """
    progress = heard(progress)
    request = Request(
        model,
        out,
        (Call(METHOD, ExportConfig(format="dense")),),
        criteria=criteria,
        options=options or EvalOptions(),
        cache=cache,
        force=force,
        resume=resume,
        scales=scales,
    )
    return ExportResult(**vars(carry_out(request, progress=progress)))
