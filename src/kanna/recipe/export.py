"""Write a model for other tools, and judge what was written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint.reader import Checkpoint
from kanna.exporters.dense import dense
from kanna.runs.criteria import Criteria, prepare_for
from kanna.runs.judge import judge
from kanna.tasks.evaluate import EvalOptions
from kanna.tasks.verdict.comparison import Comparison

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        out: The directory.
        bytes: Of its weights.
        comparison: With the model that was exported, on the user's tasks; None where none were given.
    """

    out: Path
    bytes: int
    comparison: Comparison | None = None

    @property
    def passed(self) -> bool:
        return self.comparison is None or self.comparison.passed

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "out": str(self.out),
            "format": "dense",
            "bytes": self.bytes,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
        }


def export_dense(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    progress: Progress = lambda *_: None,
) -> ExportResult:
    """Multiply every form out (`exporters.dense`), and compare the result with `model` if criteria are given.

    Raises:
        InputError: Whatever is wrong with the model, a task or the request, before anything is written.
    """
    asked = options or EvalOptions()
    if criteria is not None:
        prepare_for(model, criteria, asked)
    compared: list[Comparison] = []

    def judged(partial: Path) -> Mapping[str, Any]:
        if criteria is None:
            return {}
        compared.append(judge(model, partial, Path(out).name, criteria, asked, progress=progress))
        return {"comparison": compared[0].summary()}

    written = dense(model, out, force=force, judge=judged)
    return ExportResult(written, Checkpoint.open(written).bytes, compared[0] if compared else None)
