"""Export from Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.methods.export import METHOD
from kanna.methods.export.config import ExportConfig
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import carry_out
from kanna.runs.step import Progress
from kanna.tasks.options import EvalOptions
from kanna.tasks.verdict.comparison import Comparison


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        out: The directory.
        bytes: Of its weights.
        comparison: With the model that was exported, on the user's tasks; None where none were given.
        written: The whole result; see `runs.runner.RunResult`.
    """

    out: Path
    bytes: int
    comparison: Comparison | None
    written: Mapping[str, Any]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return dict(self.written)


def export_dense(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    progress: Progress = lambda *_: None,
) -> ExportResult:
    """Multiply every form out, and compare the result with `model` if criteria are given.

    Raises:
        InputError: Whatever is wrong with the model, a task or the request, before anything is written.
    """
    call = Call(METHOD, ExportConfig(format="dense"))
    asked = options or EvalOptions()
    request = Request(
        model, out, (call,), criteria=criteria, options=asked, cache=cache, force=force, resume=resume
    )
    result = carry_out(request, progress=progress)
    assert result.out is not None
    size = int(result.figures["model_bytes_after"])
    return ExportResult(result.out, size, result.comparison, result.to_dict(), result.passed)
