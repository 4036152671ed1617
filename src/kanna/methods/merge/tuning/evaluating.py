"""Merges on the rows of tasks, each evaluation done once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kanna.checkpoint.reader import Checkpoint
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.run import merge_plan
from kanna.methods.merge.tuning.expert_tasks import ExpertTask
from kanna.methods.merge.tuning.held import model_of, shell, tensors_of
from kanna.methods.merge.tuning.samples import Notebook, Sample, sample
from kanna.progress import Progress
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared, make_scorer, prepare, score_questions
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.tokens.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Subject:
    """A merge, or a model by itself, that can be evaluated.

    Args:
        plan: How its weights are made.
        shell: Its directory without weights.
        tokenizer: As loaded from there.
    """

    plan: MergePlan
    shell: Checkpoint
    tokenizer: Any

    def prepared(self, tasks: Sequence[Task], options: EvalOptions) -> Prepared:
        """Raises InputError where it cannot be evaluated on these tasks."""
        files = [task.name for task in tasks]
        return prepare(self.shell, files, options, read=tasks, tokenizer=self.tokenizer)

    def model(self, options: EvalOptions, plan: MergePlan | None = None) -> nn.Module:
        """In memory; with other values of parameters, if a plan of them is given."""
        return model_of(self.shell.directory, tensors_of(plan or self.plan), options)


def alone(model: str) -> MergePlan:
    """A model by itself, perhaps with an adapter, as a merge of one."""
    return merge_plan({"merge_method": "passthrough", "models": [{"model": model}]})


@contextmanager
def subjects(plans: Mapping[str, MergePlan]) -> Iterator[dict[str, Subject]]:
    """Each by its name; their directories are there until the block ends."""
    with tempfile.TemporaryDirectory() as room:
        made = {}
        for number, (name, plan) in enumerate(plans.items()):
            found = shell(plan, Path(room) / str(number))
            made[name] = Subject(plan, found, load_tokenizer(found.directory))
        yield made


@dataclass
class Evaluator:
    """Scores models on the calibration rows of tasks.

    Args:
        tasks: With their experts.
        options: How rows are scored.
        notebook: What is known already.
    """

    tasks: Sequence[ExpertTask]
    options: EvalOptions
    notebook: Notebook
    done: int = field(default=0, init=False)

    def missing(self, key: str, tasks: Sequence[ExpertTask] | None = None) -> list[ExpertTask]:
        """Tasks that a candidate has not been scored on."""
        asked = self.tasks if tasks is None else tasks
        return [task for task in asked if (key, task.name) not in self.notebook.known]

    def scored(self, key: str) -> dict[str, Sample]:
        """What is known of a candidate."""
        known = self.notebook.known
        return {task.name: known[key, task.name] for task in self.tasks if (key, task.name) in known}

    def score(self, key: str, subject: Subject, model: nn.Module, tasks: Sequence[ExpertTask]) -> None:
        """Evaluate a candidate that is in memory, and keep what it scored."""
        plan = subject.prepared([task.calibration for task in tasks], self.options)
        for task, asked in zip(tasks, plan.tasks, strict=True):
            scored = score_questions(plan, make_scorer(plan, model, asked), asked, lambda *_: None)
            self.notebook.add(key, task.name, sample(scored))
            self.done += 1


def tested(
    subject: Subject, model: nn.Module, tasks: Sequence[ExpertTask], options: EvalOptions, progress: Progress
) -> dict[str, TaskScore]:
    """A model in memory on the test rows, by name of the task's expert."""
    plan = subject.prepared([task.test for task in tasks], options)
    found = {}
    for number, (task, asked) in enumerate(zip(tasks, plan.tasks, strict=True)):
        progress("test", number, len(tasks))
        found[task.name] = score_questions(plan, make_scorer(plan, model, asked), asked, lambda *_: None)
    progress("test", len(tasks), len(tasks))
    return found
