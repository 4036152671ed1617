"""A merge beside the models that it was made of: still as good as each expert, and better than the base?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanna.errors import InputError
from kanna.methods.merge.adapted import Adapted
from kanna.methods.merge.plan import MergePlan
from kanna.progress import Progress
from kanna.result import replace
from kanna.runs.criteria import Criteria, criteria_of
from kanna.runs.opened import Opened
from kanna.tasks.options import EvalOptions

if TYPE_CHECKING:
    from kanna.tasks.data.task import Task
    from kanna.tasks.verdict.comparison import Comparison


@dataclass(frozen=True)
class Expert:
    """A task, and the model that knows it.

    Args:
        name: Of the model.
        directory: Where it lies.
        base: Where the base of the merge lies; None without one, or where the expert is the base.
        criteria: What may be lost.
        tasks: What was read.
    """

    name: str
    directory: Path
    base: Path | None
    criteria: Criteria
    tasks: Sequence[Task]


@dataclass(frozen=True)
class Judged:
    """What was found of one task.

    Args:
        name: Of the expert.
        expert: The merge beside it.
        base: The merge beside the base: what was gained.
    """

    name: str
    expert: Comparison
    base: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "expert": self.name,
            "beside_expert": self.expert.to_dict(),
            "beside_base": None if self.base is None else self.base.to_dict(),
        }

    def summary(self) -> dict[str, Any]:
        """What the directory keeps: no rows of the task."""
        return {
            "expert": self.name,
            "beside_expert": self.expert.summary(),
            "beside_base": None if self.base is None else self.base.summary(),
        }


def experts_of(plan: MergePlan, tasks: Sequence[str], max_drop: str | None) -> tuple[Expert, ...]:
    """Tasks as the command line names them, NAME=FILE.

    Args:
        max_drop: Of each, from its expert's score.

    Raises:
        InputError: NAME is no model of the recipe, or one with an adapter, which lies nowhere by itself; FILE
            cannot be read.
    """
    if max_drop is not None and not tasks:
        raise InputError("--max-drop says nothing without a task", "add --task NAME=FILE")
    files: dict[str, list[str]] = {}
    for task in tasks:
        named, _, file = task.partition("=")
        files.setdefault(named, []).append(file)
    return tuple(_expert(plan, named, some, max_drop) for named, some in files.items())


def _expert(plan: MergePlan, named: str, files: Sequence[str], max_drop: str | None) -> Expert:
    models = dict(zip(plan.recipe.models, plan.inputs.models, strict=True))
    by_name = {model.name: model for model in models.values()}
    model = models.get(named) or by_name.get(named)
    if model is None or not all(files):
        raise InputError(
            f"{named!r} names no model of the recipe and a file",
            f"write NAME=FILE, NAME one of {', '.join(by_name)}",
        )
    if isinstance(model, Adapted):
        raise InputError(
            f"{named} is a model with an adapter, which is nowhere to be loaded from",
            f"merge it alone first, or compare later: kanna compare EXPERT MERGED --task {files[0]}",
        )
    lead = plan.inputs.lead
    with_base = plan.recipe.base is not None and lead is not model and not isinstance(lead, Adapted)
    base = lead.directory if with_base else None
    criteria = criteria_of(tuple(files), max_drop)
    tasks = Opened.open(model.directory).prepared_for(criteria, EvalOptions()).tasks
    return Expert(model.name, model.directory, base, criteria, tasks)


def judged(experts: Sequence[Expert], merged: Path, name: str, progress: Progress) -> tuple[Judged, ...]:
    """Evaluate a merge and its experts on their tasks.

    Args:
        merged: Where it lies, perhaps under a provisional name.
        name: The one that it will have.
    """
    return tuple(
        Judged(
            one.name,
            _beside(one.directory, one.criteria, merged, name, one, progress),
            None if one.base is None else _beside(one.base, _of_base(one), merged, name, one, progress),
        )
        for one in experts
    )


def _of_base(expert: Expert) -> Criteria:
    """A base may know nothing of a task: what is gained is measured."""
    return replace(expert.criteria, accept_empty=True)


def _beside(
    model: Path, criteria: Criteria, merged: Path, name: str, expert: Expert, progress: Progress
) -> Comparison:
    from kanna.runs.compare import compare

    new = Opened.open(merged, trusted=True)
    found = compare(model, new, criteria, distribution=False, read=expert.tasks, progress=progress)
    return replace(found, model=replace(found.model, model=name))
