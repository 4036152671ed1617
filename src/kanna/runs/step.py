"""What a step is: it plans from headers, gives forms and tensors lazily, and says what it did.

The runner calls `plan`, `apply` and `describe` in this order and does everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from kanna.calibration.windows import Windows
from kanna.forms import Form
from kanna.progress import Progress
from kanna.reporting.blocks import Table
from kanna.runs.opened import Opened
from kanna.runs.source import Source
from kanna.runs.workspace import Workspace
from kanna.tasks.data.task import Task

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
P = TypeVar("P", bound="Plan")


@dataclass(frozen=True)
class Inputs:
    """What a step is given beside its source.

    Args:
        calibration: Text, where the user gave some.
        device: Where to compute.
        cache: Where statistics are kept between runs.
        others: Further source models, such as the experts of a merge.
        tasks: What the result will be judged on: rows that must not be learnt.
        first: The model that the chain starts from.
        chat: Whether prompts go through the chat template, those of `calibration`, too.
        joiner: What stands between prompt and answer on tasks, in `calibration` and in rows that are learnt;
            see `kanna.tasks.data.rows.joined`.
    """

    calibration: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path = Path()
    others: tuple[Source, ...] = ()
    tasks: tuple[Task, ...] = ()
    first: Opened | None = None
    chat: bool = False
    joiner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step is going to do, known before a weight is changed. Data: printed, varied, recorded.

    Args:
        config: With every default decided.
        notes: What the user should know.
        memory: Predicted peak bytes.
        work_bytes: Predicted bytes of files of work, at their most.
        cache_bytes: At the most in the cache.
        beside_bytes: At the most beside the output; all of them where it is not said.
    """

    config: BaseModel
    notes: tuple[str, ...] = ()
    memory: int = 0
    work_bytes: int = 0
    cache_bytes: int = 0
    beside_bytes: int | None = None

    # What to do where memory does not suffice.
    less_memory: ClassVar[str] = "close other programs, or use a machine with more memory"

    # What to do where the disk does not.
    less_space: ClassVar[str] = "free some space, or name a cache on another disk: KANNA_CACHE=DIR"

    # What is said of a plan that changes nothing.
    unchanged: ClassVar[str] = "nothing changed"

    @property
    def data_hash(self) -> str | None:
        """sha256 of the data that the step learns from; None where there are none."""
        return None

    @property
    def reads(self) -> tuple[Path, ...]:
        """Model directories that are read beside the source; none of them may be the output."""
        return ()

    @property
    def changes_nothing(self) -> bool:
        return False

    def forms(self) -> Mapping[str, Form] | None:
        """Module path -> the form it will have, `Dense` for an ordinary one; None until it is run."""
        return None

    def lines(self) -> list[str]:
        """What is about to be done, for people."""
        return [f"{key}: {value}" for key, value in self.config.model_dump(mode="json").items()]

    def tables(self) -> list[Table]:
        """The same matrix by matrix."""
        return []

    def foretold(self) -> dict[str, Any]:
        """What a dry run adds to `to_dict`; weights may be read and things be tried out for it."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "predicted_peak_memory_bytes": self.memory,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Job:
    """What a step works with once it is decided that it runs.

    Args:
        source: The model it starts from.
        workspace: Of this step alone, in the folder of unfinished work; what is there after a kill is reused.
        inputs: As at planning.
        progress: Called with (stage, done, total).
    """

    source: Source
    workspace: Workspace
    inputs: Inputs
    progress: Progress


@dataclass(frozen=True)
class Recorded:
    """Block outputs computed while compressing, for the check of what was written.

    Args:
        windows: What went in.
        states: Hidden states behind each run of a block, by its place in the model's order of such runs; a
            block that is run many times has as many.
    """

    windows: Windows
    states: Mapping[int, Tensor]


@dataclass(frozen=True)
class Addition:
    """What a step adds to a model's directory whose other files stay as they are: the second kind of output.

    Args:
        folder: Below the model's directory, with a slash between its parts.
        write: Given the folder, and scores that the runner measured, writes all that is in it.
        bytes: Of it.
        activate: Given a model's directory, makes the addition count there.
    """

    folder: str
    write: Callable[[Path, Mapping[str, Any]], None]
    bytes: int
    activate: Callable[[Path], None]


@dataclass(frozen=True)
class Changes:
    """What is new in the model that is written; all else is copied from the source, bit for bit.

    Args:
        forms: Module path -> new form; `Dense` makes a module ordinary again.
        shapes: Full parameter name -> dtype and shape, of the forms' tensors and of changed parameters.
        tensors: Gives them by name, in any order, one or a few in memory; may be larger than memory in all.
        recorded: None where there is nothing to compare with.
        finish: Called with the directory when its weights are there: further files.
        extra_bytes: Of those files.
        addition: What comes beside the weights; where the output lies inside the model, it is all of it.
    """

    forms: Mapping[str, Form] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    tensors: Callable[[], Iterator[tuple[str, Tensor]]] = lambda: iter(())
    recorded: Recorded | None = None
    finish: Callable[[Path], None] = lambda _: None
    extra_bytes: int = 0
    addition: Addition | None = None


@dataclass(frozen=True)
class Description:
    """What a step did, for the lineage, the card, the console and the report.

    Args:
        summary: One sentence; "{base}" stands for the model's name.
        figures: Recorded in the lineage.
        rows: (what, value) of the card's table of sizes.
        tables: Further tables of the card.
        console: Tables for the console.
        lines: Sentences for the console.
        tags: Of the card.
        details: Further keys of the result.
    """

    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    console: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Step(ABC, Generic[P]):
    """One method as the runner uses it.

    Attributes:
        accepts: Keys of the forms that the source may hold; what it holds beside them is refused by name.
            None takes any form.
        instead: What to do with a source that holds others.
        needs_finite: Whether a NaN anywhere in the source is refused before work begins.
    """

    accepts: ClassVar[Collection[str] | None] = ()
    instead: ClassVar[str] = "write dense weights first: kanna export DIR --format dense --out D2"
    needs_finite: ClassVar[bool] = True

    @abstractmethod
    def plan(self, source: Source, config: Any, inputs: Inputs) -> P:
        """Decide what can be decided; weights are read only where the request depends on them.

        Raises:
            InputError: Whatever is wrong with the request.
        """

    @abstractmethod
    def apply(self, plan: P, job: Job) -> Changes:
        """Forms and shapes now, tensors when they are asked for."""

    @abstractmethod
    def describe(self, plan: P, changes: Changes) -> Description:
        """What was done; called after the weights are written."""

    def advise(self, plan: P, changes: Changes, share: float) -> str | None:
        """With which settings this step would do so little harm, as far as it can tell; None if it cannot.

        Args:
            share: Of the error that the step made, what may stay.
        """
        return None
