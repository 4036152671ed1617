"""What searching and composing share: unfinished work, and the model that is written in the end."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from kanna.checkpoint import lineage
from kanna.checkpoint.location import locate
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.side_files import refuse_lost_modules
from kanna.methods.laser.arena import Arena
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.results import Composition, Search
from kanna.methods.laser.run import LaserResult, laser_apply
from kanna.methods.laser.validation import Validation
from kanna.progress import Progress
from kanna.result import Shown
from kanna.runs.criteria import Criteria
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.record import Stages, run_record
from kanna.runs.request import Origin
from kanna.runs.unfinished import clear, replaces, unfinished_work
from kanna.tasks.journal import Journal

JOURNAL = "tallies.jsonl"
F = TypeVar("F", Search, Composition)


@dataclass(frozen=True, repr=False)
class Finding(Shown, Generic[F]):
    """What was found.

    Args:
        found: All that the file of the search or the composition holds.
        applied: The written model; None where no output was asked for.
        run: Times and work of this run.
    """

    found: F
    applied: LaserResult | None
    run: dict[str, Any]

    def __repr__(self) -> str:
        written = "nothing was written" if self.applied is None else f"written: {self.applied.out}"
        return f"<Finding of {self.found.kind} on {self.found.model.name}: {written}>"

    @property
    def result(self) -> dict[str, Any]:
        return self.found.to_dict()

    @property
    def passed(self) -> bool:
        return self.applied is None or self.applied.passed

    def to_dict(self) -> dict[str, Any]:
        written = None if self.applied is None else self.applied.to_dict()
        return {**self.result, "applied": written, "run": self.run}


@dataclass(frozen=True)
class Choice(Generic[F]):
    """Edits that are put in, and how they were found.

    Args:
        work: What it took, for the record of the run.
    """

    found: F
    edits: Sequence[str]
    blocks: int
    origin: Origin
    work: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A search or a composition as asked for; see `kanna.methods.laser.run.laser_apply`.

    Args:
        read: What is read beside the model, and must not be replaced either.
    """

    model: str | Path
    out: str | Path | None
    config: LaserConfig
    criteria: Criteria | None
    force: bool
    resume: bool
    cache: Path | None
    progress: Progress
    read: tuple[Path, ...] = ()
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Raise InputError where an output is in the way or would lack something, before any work."""
        if self.target is not None:
            refuse_existing(self.target, self.replacing)
            refuse_input(self.target, locate(self.model), *self.read)
            refuse_lost_modules(locate(self.model))

    @property
    def target(self) -> Path | None:
        return None if self.out is None else final_name(self.out)

    @property
    def replacing(self) -> bool:
        return self.target is not None and replaces(self.target, self.force, self.resume)

    def carried_out(
        self, arena: Arena, key: str, choose: Callable[[Validation, Progress], Choice[F]]
    ) -> Finding[F]:
        """Choose edits, going on with unfinished work, and write the model that has them.

        Args:
            key: Of all that the choice depends on.
        """
        stages, replacing = Stages(self.progress), self.replacing
        with self._workspace(key) as directory:
            journal = Journal.open(None if directory is None else directory / JOURNAL)
            validation = arena.validation(journal, directory)
            try:
                choice = choose(validation, stages.report)
            finally:
                validation.close()
            written = None
            evaluation = arena.plan.options
            if self.target is not None:
                arena.source.opened.release()  # its weights were made dense; what is judged is what is stored
                edits = {"edits": tuple(choice.edits), "blocks": choice.blocks}
                written = laser_apply(
                    self.model, self.target, self.config.model_copy(update=edits), force=replacing,
                    device=evaluation.device, cache=self.cache, criteria=self.criteria, options=evaluation,
                    origin=choice.origin, within=directory, opened=arena.source.opened,
                    progress=stages.report,
                )  # fmt: skip
            if directory is not None:
                clear(directory)
        run = run_record(self.started, stages.seconds, evaluation.device) | choice.work
        if self.target is not None:
            lineage.write_run_record(self.target, run)
        return Finding(choice.found, written, run)

    def _workspace(self, key: str) -> AbstractContextManager[Path | None]:
        """The directory of unfinished work, of which the journal goes on; None without an output."""
        if self.target is None:
            return nullcontext()
        return unfinished_work(self.target, key, self.resume, self.force, survives=(JOURNAL,), worth=JOURNAL)
