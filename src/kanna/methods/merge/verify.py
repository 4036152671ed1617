"""Looking at a merged model again: digests, headers, finite values, whether it loads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanna.checked import check_version, read_json
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.results import RESULT
from kanna.methods.merge.written import probed

if TYPE_CHECKING:
    from kanna.runs.probe import Verdict

_SCHEMA = 1
_AGAIN = "merge again"


@dataclass(frozen=True)
class MergeCheck:
    """What looking at it showed; what is damaged is an error instead.

    Args:
        directory: Where it lies.
        tensors: How many its files hold.
        files: How many have the recorded sha256.
        unrecorded: Files that nobody recorded.
        inputs: Names of the models it was made from.
        verdict: Whether it loads and computes finite numbers; None where that was not tried.
        note: Why it was not tried.
    """

    directory: Path
    tensors: int
    files: int
    unrecorded: tuple[str, ...]
    inputs: tuple[str, ...]
    verdict: Verdict | None
    note: str

    @property
    def passed(self) -> bool:
        return self.verdict is None or self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "merge-verify",
            "directory": str(self.directory),
            "tensors": self.tensors,
            "files": self.files,
            "unrecorded": list(self.unrecorded),
            "inputs": list(self.inputs),
            "passed": self.passed,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "note": self.note,
        }


def merge_verify(directory: str | Path, *, max_memory: int | None = None) -> MergeCheck:
    """Compare a merged model with what was recorded of it, and load it. Reads all the data once.

    Args:
        max_memory: Bytes; a model that takes more is not loaded. None for what is free.

    Returns:
        Whether the model is what was written, and whether it loads.

    Raises:
        InputError: It is no merge, or a file is missing, damaged or changed, or a value not finite.
    """
    checkpoint = Checkpoint.open(directory)
    place = checkpoint.directory
    recorded = lineage.read(place)
    step = (
        None if recorded is None else next((s for s in reversed(recorded.steps) if s.method == "merge"), None)
    )
    if recorded is None or step is None:
        raise InputError(
            f"{place} is no merge of kanna's: its kanna.json has no such step",
            "give what kanna merge run wrote",
        )
    scan = lineage.scan(checkpoint, finite=True)
    lineage.verify(place, scan)
    scan.refuse_not_finite()
    _compare_result(checkpoint, whole=recorded.steps[-1] is step)
    parameters = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    verdict, note = probed(place, parameters, 2**63 if max_memory is None else max_memory)
    unrecorded = tuple(sorted(set(lineage.file_names(place)) - set(recorded.files)))
    names = tuple(one.name for one in step.inputs)
    return MergeCheck(place, len(checkpoint.tensors), len(recorded.files), unrecorded, names, verdict, note)


def _compare_result(checkpoint: Checkpoint, whole: bool) -> None:
    """The tensors that the result file tells of are those of the files."""
    path = checkpoint.directory / RESULT
    data = read_json(path)
    check_version(data.get("schema_version"), path, _SCHEMA, _AGAIN, "schema_version")
    told = {name for group in data.get("groups", ()) for name in group["tensors"]}
    if whole and told != set(checkpoint.tensors):
        name = min(told ^ set(checkpoint.tensors))
        raise InputError(f"{path} and the files of weights do not hold the same tensors: {name}", _AGAIN)
