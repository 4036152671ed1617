"""Files that a merge must not suffer on: plain text, or rows that no expert was made for; beside the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kanna.errors import InputError
from kanna.methods.merge.tuning.evaluating import Subject
from kanna.methods.merge.tuning.results import JudgedGuard
from kanna.runs.criteria import Criteria, criteria_of
from kanna.tasks.data.task import HARNESS, Task, load_tasks
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict.tolerance import decide


@dataclass(frozen=True)
class Guards:
    """Args:
    criteria: What may be lost on each; None without any.
    tasks: What was read.
    """

    criteria: Criteria | None = None
    tasks: tuple[Task, ...] = ()

    @property
    def key(self) -> list[Any]:
        """What a verdict depends on."""
        rules = () if self.criteria is None else self.criteria.rules
        told = [None if rule.tolerance is None else rule.tolerance.text for rule in rules]
        return [[task.digest for task in self.tasks], told]

    def scored(self, subject: Subject, model: nn.Module, options: EvalOptions) -> Sequence[TaskScore]:
        """A model in memory on all of them."""
        if not self.tasks:
            return ()
        return subject.prepared(self.tasks, options).evaluate(model).scores

    def judged(self, base: Sequence[TaskScore], merged: Sequence[TaskScore]) -> tuple[JudgedGuard, ...]:
        """The merge beside the base."""
        found = []
        for before, after in zip(base, merged, strict=True):
            assert self.criteria is not None
            tolerance = self.criteria.rule(before.task).tolerance
            assert tolerance is not None  # a guard without one is refused where it is read
            found.append(
                JudgedGuard(
                    task=before.task,
                    metric=before.metric,
                    base=before.value,
                    merged=after.value,
                    beside_base=decide(before, after, tolerance=tolerance),
                )
            )
        return tuple(found)


def read_guards(texts: Sequence[str], options: EvalOptions) -> Guards:
    """FILE=3%, each.

    Raises:
        InputError: A file or a tolerance that cannot be read.
    """
    if not texts:
        return Guards()
    criteria = criteria_of((), None, texts)
    if named := next((file for file in criteria.files if file.startswith(HARNESS)), None):
        raise InputError(f"the guard {named} is no file", "give text or rows")
    return Guards(criteria, tuple(load_tasks(criteria.files, options.limit)))
