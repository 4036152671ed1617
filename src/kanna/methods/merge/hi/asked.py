"""What is asked of Hi-Merging, checked, and the models that it needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.methods.merge.hi.blocks import Block, blocks_of
from kanna.methods.merge.hi.config import LAYER, MODEL, HiOptions
from kanna.methods.merge.hi.data_free import check_data_free, work_without_tasks
from kanna.methods.merge.hi.foreseen import Evaluations, evaluations
from kanna.methods.merge.hi.merges import Merges, Mixing
from kanna.methods.merge.hi.recipes import recipe_of
from kanna.methods.merge.hi.state import WHOLE, State
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.run import key_of, merge_plan
from kanna.methods.merge.tuning import endpoints
from kanna.methods.merge.tuning.axes import numbers
from kanna.methods.merge.tuning.evaluating import Evaluator, Subject
from kanna.methods.merge.tuning.expert_tasks import (
    ExpertTask,
    Split,
    expert_tasks,
    judging_tasks,
    options_for,
    read_pairs,
)
from kanna.methods.merge.tuning.guards import Guards, read_guards
from kanna.methods.merge.tuning.samples import Scale
from kanna.methods.merge.tuning.work import Work, foreseen
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import SCORING


@dataclass(frozen=True)
class Asked:
    """What is merged, checked.

    Args:
        base: As given.
        models: Name of an expert -> the model, as given.
        plan: Of the sum of all experts.
    """

    base: str
    models: Mapping[str, str]
    plan: MergePlan
    blocks: tuple[Block, ...]
    kept: tuple[float, ...]
    scales: tuple[float, ...]
    tasks: tuple[ExpertTask, ...]
    options: HiOptions
    evaluation: EvalOptions
    out_dtype: str | None
    max_memory: int
    max_drop: str | None
    guards: Guards

    @property
    def evaluations(self) -> Evaluations:
        pairs = len(self.kept) * len(self.scales)
        return evaluations(self.options, len(self.models), len(self.blocks), pairs)

    @property
    def work(self) -> Work:
        """At most."""
        if self.options.data_free:
            return work_without_tasks(self.plan)
        each = foreseen(self.plan, self.tasks, 1, 0)
        count = self.evaluations.total
        of_all = count / len(self.models)
        return Work(count, count, each.rows, round(each.tokens * of_all), each.seconds * of_all)

    @property
    def key(self) -> str:
        """sha256 of all that the result depends on."""
        facts = {
            "merge": key_of(self.plan),
            "models": [self.base, *self.models.items()],
            "dtype": self.out_dtype,
            "tasks": [[task.name, task.calibration.digest, task.test.digest] for task in self.tasks],
            "options": self.options.used,
            "evaluation": {key: str(value) for key, value in self.evaluation},
            "max_drop": self.max_drop,
            "guards": self.guards.key,
            "scoring": SCORING,
            "threads": torch.get_num_threads(),
        }
        return lineage.digest_of(facts)


def named(given: Mapping[str, str | Path] | Sequence[str], flag: str) -> dict[str, str]:
    if isinstance(given, Mapping):
        return {name: str(model) for name, model in given.items()}
    return {name: str(model) for name, model in read_pairs(given, flag).items()}


def files_of(given: Mapping[str, str | Path] | Sequence[str], flag: str) -> dict[str, Path]:
    return {name: Path(file) for name, file in named(given, flag).items()}


def asked_for(
    base: str,
    models: Mapping[str, str],
    tasks: Mapping[str, Path],
    tests: Mapping[str, Path],
    options: HiOptions,
    evaluation: EvalOptions,
    out_dtype: str | None,
    max_memory: int,
    max_drop: str | None,
    guards: Sequence[str] = (),
) -> Asked:
    if not models:
        raise InputError("there is no expert", "add --expert NAME=MODEL")
    if options.data_free:
        check_data_free(models, tasks, tests, options, max_drop, guards)
    elif one := next((name for name in models if name not in tasks), None):
        raise InputError(f"the expert {one} has no task", f"add --task {one}=FILE, or leave it out")
    elif one := next((name for name in tasks if name not in models), None):
        raise InputError(f"the task of {one} has no expert", f"add --expert {one}=MODEL, or leave it out")
    if options.stages == LAYER and not options.data_free and (idle := _said(options)):
        raise InputError(
            f"--{idle} has no effect with --stages layer, which begins with all of every expert",
            f"add --stages both, or leave out --{idle}",
        )
    if options.scope == "model" and (options.data_free or options.stages != MODEL):
        raise InputError(
            "with one threshold for a whole model its blocks cannot be pruned apart",
            "write --scope layer or tensor, or add --stages model",
        )
    whole = State((tuple(WHOLE for _ in models),))
    recipe = recipe_of(whole, base, list(models.values()), (), dtype=out_dtype)
    plan = merge_plan(recipe, max_memory=max_memory)
    scoring = options_for(evaluation)
    if options.data_free:
        parted = judging_tasks(tests, scoring)
    else:
        ordered = {name: tasks[name] for name in models}
        parted = expert_tasks(ordered, tests, Split(options.share, options.split_seed), scoring)
    kept, scales = options.tried
    return Asked(
        base, models, plan, blocks_of(plan, options.group), numbers("--p", kept, 0, 1),
        numbers("--s", scales, 0), parted, options, scoring, out_dtype, max_memory, max_drop,
        read_guards(guards, scoring),
    )  # fmt: skip


def _said(options: HiOptions) -> str | None:
    """p or s, where it was given."""
    return next((name for name in ("p", "s") if getattr(options, name) is not None), None)


def opened(asked: Asked) -> AbstractContextManager[dict[str, Subject]]:
    """The merge, the base and the experts, fit to be evaluated."""
    return endpoints.opened(asked.plan, asked.base, asked.models, asked.tasks, asked.evaluation)


def mixing_of(asked: Asked, experts: Collection[str]) -> Mixing:
    """Of some experts, such as those that have a scale, since they gain something."""
    names = list(asked.models)
    kept = [index for index, name in enumerate(names) if name in experts]
    wanted = [0, *(1 + index for index in kept)]
    return Mixing(
        base=asked.base,
        models=tuple(asked.models[names[index]] for index in kept),
        blocks=asked.blocks,
        inputs=asked.plan.inputs.only(wanted),
        consensus=asked.options.consensus,
        scope=asked.options.scope,
        dtype=asked.out_dtype,
        max_memory=asked.max_memory,
    )


def ground_of(
    asked: Asked,
    mixing: Mixing,
    scales: Mapping[str, Scale],
    subject: Subject,
    evaluator: Evaluator,
    room: Path,
) -> Merges:
    """What Hi-Merging stands on."""
    tasks = tuple(task for task in asked.tasks if task.name in scales)
    return Merges(mixing, tasks, tuple(scales[task.name] for task in tasks), subject, evaluator, room)
