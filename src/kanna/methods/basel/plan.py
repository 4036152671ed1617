"""What Basel is going to do, known before a weight is read."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.calibration.trial import try_out
from kanna.errors import InputError
from kanna.methods.basel import forecast
from kanna.methods.basel.budget import Size, least
from kanna.methods.basel.config import (
    MOST_EVENTS,
    MOST_EVENTS_OF_BSI,
    PER_EXTRA_BASIS,
    PROBES,
    STEPS_PER_EVENT,
    BaselConfig,
)
from kanna.methods.basel.events import Schedule
from kanna.methods.basel.forecast import Forecast
from kanna.models.head import with_head
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.models.skeleton import read_config
from kanna.reporting.blocks import Table
from kanna.runs import step
from kanna.runs.lessons import Data, activation_bytes, check_machine, read_data
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.training.batches import Mixed, mixed

# Settings of part 1 alone.
_OF_BASES = ("importance", "basis", "prune_events", "extra_rank", "learn", "rate")


@dataclass(frozen=True, kw_only=True)
class Plan(step.Plan):
    """What is trained, and how long.

    Args:
        inventory: Of the model.
        selected: Matrices that become bases.
        sizes: By name.
        data: What is learnt.
        batches: Which rows go into which step.
        schedule: Of part 1; None where factors are there already.
        factor_steps: Of part 2.
        start: The model whose factors are trained; None where they come from bases.
        source: The model.
        device: Where it is trained.
    """

    config: BaselConfig
    inventory: Inventory
    selected: tuple[Matrix, ...]
    sizes: Mapping[str, Size]
    data: Data
    batches: Mixed
    schedule: Schedule | None
    factor_steps: int
    start: Source | None
    source: Source
    device: torch.device

    less_memory = "lower --rows or --context, add --recompute, or select fewer matrices"

    @property
    def data_hash(self) -> str:
        if self.start is None:
            return self.data.digest
        return hashlib.sha256(f"{self.data.digest} {self.start.hash}".encode()).hexdigest()

    @property
    def reads(self) -> tuple[Path, ...]:
        return () if self.start is None else (self.start.directory,)

    @property
    def changes_nothing(self) -> bool:
        return self.config.keeps_all

    @property
    def parameters(self) -> int:
        """Of the selected matrices, dense."""
        return sum(size.dense for size in self.sizes.values())

    @property
    def passes(self) -> int:
        """Times that gradients of a step's rows are computed, in both parts."""
        if self.schedule is None:
            return self.factor_steps
        probes = 2 * PROBES * self.schedule.events if self.config.importance == "bsi" else 0
        return self.schedule.steps + probes + self.factor_steps

    @property
    def rest(self) -> float:
        """Share of the model's parameters that is not in these matrices: less cannot be reached."""
        return 1 - self.parameters / self.inventory.parameters

    @property
    def stored(self) -> int:
        """Parameters of the selected matrices at the end."""
        if self.schedule is not None:
            return self.schedule.stored
        assert self.start is not None
        return sum(self.start.parameters(matrix) for matrix in self.selected)

    def lines(self) -> list[str]:
        train, schedule = self.data.train, self.schedule
        rest = self.rest
        share = rest + self.stored / self.inventory.parameters
        known = self.config.keep_sigma is None  # whose ranks are seen when the weights are learnt
        kept, whole = (f"; {self.stored:,} are kept", f"{share:.1%} stays; ") if known else ("", "")
        parts = "" if schedule is None else f"{schedule.steps} steps with {schedule.counted}, then "
        probes = [] if self.config.importance != "bsi" else [f"{2 * PROBES} gradients more at each event"]
        return [
            f"{len(self.selected)} matrices of {self.parameters:,} parameters{kept}",
            f"of the whole model {whole}{rest:.1%} is not in these matrices",
            f"{len(train):,} rows, {train.tokens:,} tokens, {train.targets:,} of them learnt; "
            f"{len(self.data.validation):,} rows for validation",
            f"{parts}{self.factor_steps} steps of the factors",
            *probes,
            f"memory about {self.memory / 1e9:.2f} GB",
        ]

    @cached_property
    def _forecast(self) -> Forecast:
        return forecast.forecast(self)

    def tables(self) -> list[Table]:
        return [] if self.changes_nothing else forecast.tables(self, self._forecast)

    def foretold(self) -> dict[str, Any]:
        return {} if self.changes_nothing else forecast.to_dict(self, self._forecast)

    def to_dict(self) -> dict[str, Any]:
        train, schedule = self.data.train, self.schedule
        learnt = {} if schedule is None else {"steps": schedule.steps, "events": schedule.events}
        return {
            **super().to_dict(),
            **learnt,
            "matrices": len(self.selected),
            "parameters": self.parameters,
            "parameters_at_end": None if self.config.keep_sigma is not None else self.stored,
            "least_keep": least(self.sizes) / self.parameters,
            "factor_steps": self.factor_steps,
            "gradient_passes": self.passes,
            "rows": len(train),
            "tokens": train.tokens,
            "rows_cut": train.cut,
        }


def _idle(config: BaselConfig) -> list[str]:
    """Settings other than by default that nothing looks at where factors are given."""
    fields = type(config).model_fields
    changed = [name for name in _OF_BASES if getattr(config, name) != fields[name].default]
    return [f"--{name.replace('_', '-')}" for name in changed] if config.start is not None else []


def make_plan(source: Source, config: BaselConfig, inputs: Inputs) -> Plan:
    """Read the rows, count what there is and what is to be left.

    Raises:
        InputError: Whatever is wrong with the rows, the selection, the budget or the start.
    """
    inventory = with_head(source.inventory, source.skeleton, config.select)
    selected, notes = _trainable(source, select(inventory.matrices, config.select))
    check_machine(source, config.recompute, config.precision, inputs.device)
    made = [name for name in beside(source.skeleton, selected) if source.file_name(name) is None]
    if config.beside and made:
        raise InputError(
            f"{made[0]} is not stored as it is computed with, so it cannot be trained", "leave out --beside"
        )
    sizes = {matrix.name: _size(matrix, config) for matrix in selected}
    parameters = sum(size.dense for size in sizes.values())
    if config.keep is not None:
        _check_budget(config.keep, sizes, parameters)
    start = None if config.start is None else open_start(source, config.start, selected)
    data = read_data(source, config, inputs.tasks, inputs.joiner)
    sizes_of = [len(example) for example in data.train.all], [len(example) for example in data.replay]
    batches = mixed(*sizes_of, config.rows, config.replay_share, config.seed)
    parts = config.steps_of(batches.task.per_epoch)
    schedule = None
    if config.start is None:
        schedule = _schedule(config, sizes, parts, round((config.keep or 1.0) * parameters))
    if idle := _idle(config):
        notes.append(f"{', '.join(idle)}: no effect, since the factors of --start have no weights of bases")
    if data.train.cut:
        notes.append(f"{data.train.cut:,} prompts lose their beginning to fit the context")
    if inventory.refused:
        notes.append(f"{len(inventory.refused)} matrices are left out: {inventory.refused[0].refused}")
    return Plan(
        config=config,
        notes=tuple(notes),
        memory=_memory(inventory, sizes, data, config),
        work_bytes=_state_bytes(inventory, parameters, config),
        inventory=inventory,
        selected=selected,
        sizes=sizes,
        data=data,
        batches=batches,
        schedule=schedule,
        factor_steps=parts[2] if schedule else sum(parts),
        start=start,
        source=source,
        device=inputs.device,
    )


def _trainable(source: Source, selected: Sequence[Matrix]) -> tuple[tuple[Matrix, ...], list[str]]:
    """The matrices that can be trained, and a note on the others.

    Raises:
        InputError: There is none.
    """
    trial, learning = source.trial, try_out(read_config(source.directory), source.inventory, training=True)
    left = [m for m in selected if m.module in trial.read | trial.uncalled | learning.read]
    kept = tuple(matrix for matrix in selected if matrix not in left)
    if not kept:
        raise InputError(
            f"{left[0].name} cannot be replaced: the model reads its weight itself, or never calls it",
            "select other matrices",
        )
    for matrix in kept:
        source.tensor_of(matrix)
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    why = "the model's own code reads its weight, or does not call it on text"
    return kept, [f"{left[0].name}{more} left dense: {why}"] if left else []


def beside(model: nn.Module, selected: Sequence[Matrix]) -> dict[str, nn.Parameter]:
    """Parameters outside the modules of the selected matrices, by their names in the model."""
    modules = tuple(f"{matrix.module}." for matrix in selected)
    return {name: p for name, p in model.named_parameters() if not name.startswith(modules)}


def _check_budget(keep: float, sizes: Mapping[str, Size], parameters: int) -> None:
    if keep * parameters >= least(sizes):
        return
    lowest = math.ceil(1000 * least(sizes) / parameters) / 1000
    raise InputError(
        f"--keep {keep:g} leaves {round(keep * parameters):,} parameters; one basis and the new ones of each "
        f"of the {len(sizes)} matrices need {least(sizes):,}",
        f"give --keep {lowest:g} or more, or fewer --extra-rank",
    )


def open_start(source: Source, directory: Path, selected: Sequence[Matrix]) -> Source:
    """The low-rank directory whose factors are trained.

    Raises:
        InputError: It is none, of another model, or differs from the source in more than these matrices.
    """
    start = Source.open(directory.expanduser())
    recorded = start.lineage
    if recorded is None or not start.forms:
        raise InputError(
            f"{directory} has no factors of kanna", "give what kanna lowrank wrote, or --keep in its place"
        )
    if recorded.base.hash != source.hash:
        raise InputError(
            f"{directory} was made from {recorded.base.name} ({recorded.base.hash[:16]}), and not from "
            f"{source.name} ({source.hash[:16]})",
            "name the model that it was made from",
        )
    other = [step.method for step in recorded.steps if step.method != "lowrank"]
    if other:
        raise InputError(
            f"{directory} was changed by {', '.join(other)}, too", "start from kanna lowrank alone"
        )
    start.check_forms(("low_rank", "rows", "dense"), "basel --start", "make it with --storage pair")
    modules = {matrix.module for matrix in selected}
    outside = next((path for path in start.forms if path not in modules), None)
    if outside is not None:
        raise InputError(f"{directory} has factors in {outside}, which is not selected", "select it, too")
    _check_rest(source, start, directory)
    return start


def _check_rest(source: Source, start: Source, directory: Path) -> None:
    """Raise InputError where a tensor outside the factors is not the source's: it would be lost."""
    factors = {name for path in start.forms for name in start.tensors_of(path)}
    for name in start.checkpoint.tensors:
        if name in factors:
            continue
        known = name in source.checkpoint.tensors
        if not known or not torch.equal(start.checkpoint.tensor(name), source.checkpoint.tensor(name)):
            raise InputError(
                f"{name} of {directory} is not that of {source.name}",
                "make it without --refine",
            )


def _size(matrix: Matrix, config: BaselConfig) -> Size:
    m, n = matrix.shape
    extra = max(1, round(min(m, n) / PER_EXTRA_BASIS)) if config.extra_rank is None else config.extra_rank
    return Size(m, n, min(extra, min(m, n)))


def _schedule(
    config: BaselConfig, sizes: Mapping[str, Size], parts: tuple[int, int, int], stored: int
) -> Schedule:
    keeping, dropping, _ = parts
    steps = keeping + dropping
    most = MOST_EVENTS_OF_BSI if config.importance == "bsi" else MOST_EVENTS
    first = max(1, keeping)
    events = config.prune_events or max(1, min(most, steps // STEPS_PER_EVENT, steps - first))
    if events > steps - first:
        raise InputError(
            f"{events} events do not fit into {steps - first} steps",
            "lower --prune-events, or more --epochs or --steps",
        )
    trained = sum(int(size.as_bases(min(size.m, size.n))) for size in sizes.values())
    return Schedule(first, steps, events, trained, stored, config.keep_sigma)


def _state_bytes(inventory: Inventory, parameters: int, config: BaselConfig) -> int:
    """Two states of part 2, one being replaced, and the best: what is trained and its two averages."""
    trained = round((config.keep or config.keep_sigma or 0.5) * parameters)
    trained += inventory.parameters - parameters if config.beside else 0
    return 3 * 12 * trained


def _memory(inventory: Inventory, sizes: Mapping[str, Size], data: Data, config: BaselConfig) -> int:
    """The model, all bases of its matrices, what is trained with gradient and averages, and activations."""
    bases = sum(int(size.as_bases(min(size.m, size.n))) for size in sizes.values())
    kept = round((config.keep or 0.5) * sum(size.dense for size in sizes.values()))
    activations = activation_bytes(inventory, data.longest, config.rows, config.recompute)
    dense = sum(size.dense for size in sizes.values())
    held = inventory.parameters * (2 if config.loss == "kl" else 1)
    held += 3 * (inventory.parameters - dense) if config.beside else 0
    part_1 = 4 * (held + bases) + activations
    part_2 = 4 * (held + 4 * kept) + activations
    return 500_000_000 + max(part_1, part_2)
