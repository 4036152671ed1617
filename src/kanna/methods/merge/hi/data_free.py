"""Hi-Merging that asks no task: what may be said with it, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kanna.errors import InputError
from kanna.methods.merge.hi.config import LAYER, HiOptions
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.tuning.work import Work

# Of the base and every expert, one entry: read, subtracted, its sign compared with the sum's; a rough figure.
_NANOSECONDS = 60
# Refused where they were given, whatever they say.
_IDLE = {"rounds": "--rounds", "share": "--calibration-share", "split_seed": "--split-seed"}


def check_data_free(
    experts: Mapping[str, str],
    tasks: Mapping[str, Path],
    tests: Mapping[str, Path],
    options: HiOptions,
    max_drop: str | None,
    guards: Sequence[str],
) -> None:
    """Raises InputError for what says nothing where no task is asked."""
    if tasks:
        raise InputError(
            f"--data-free asks no task, but --task gives one for {next(iter(tasks))}",
            "leave out --data-free; or give these rows as --test NAME=FILE, which only judge the result",
        )
    if stray := next((name for name in tests if name not in experts), None):
        raise InputError(f"--test names {stray}, which is no expert", f"write one of {', '.join(experts)}")
    if (max_drop is not None or guards) and not tests:
        raise InputError("--max-drop and --guard judge nothing without rows", "add --test NAME=FILE")
    if options.stages != LAYER:
        raise InputError(
            f"--stages {options.stages} prunes and scales each expert by its task, and --data-free asks none",
            "leave out --stages: blocks are treated as with --stages layer, by their signs",
        )
    if idle := next((name for name in _IDLE if name in options.model_fields_set), None):
        raise InputError(
            f"{_IDLE[idle]} says how tasks choose, and --data-free asks none", f"leave out {_IDLE[idle]}"
        )
    for name, given in zip(("p", "s"), options.tried, strict=True):
        if "," in given or ":" in given:
            raise InputError(
                f"--{name} {given} gives several values, of which only a task could choose",
                f"give one value, or leave out --{name} for 1",
            )
    if options.drop_useless:
        raise InputError("without a task no expert is useless", "leave out --drop-useless, or that expert")
    if options.max_evaluations is not None:
        raise InputError("nothing is evaluated with --data-free", "leave out --max-evaluations")


def work_without_tasks(plan: MergePlan) -> Work:
    """One pass over all weights."""
    numbers = sum(tensor.spec.numbers * len(tensor.parts) for tensor in plan.tensors)
    return Work(0, 0, 0, 0, numbers * _NANOSECONDS * 1e-9)
