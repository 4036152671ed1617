"""What Basel is going to do, known before a weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kanna.errors import InputError
from kanna.methods.basel.budget import Size, least
from kanna.methods.basel.config import MOST_EVENTS, PER_EXTRA_BASIS, STEPS_PER_EVENT, BaselConfig
from kanna.methods.basel.data import Data, read_data
from kanna.methods.basel.events import Schedule
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.runs import step
from kanna.runs.source import Source
from kanna.runs.step import Inputs


@dataclass(frozen=True, kw_only=True)
class Plan(step.Plan):
    """What is trained, and how long.

    Args:
        inventory: Of the model.
        selected: Matrices that become bases.
        sizes: By name.
        data: What is learnt.
        schedule: Of part 1.
        factor_steps: Of part 2.
    """

    config: BaselConfig
    inventory: Inventory
    selected: tuple[Matrix, ...]
    sizes: Mapping[str, Size]
    data: Data
    schedule: Schedule
    factor_steps: int

    less_memory = "lower --rows or --context, add --recompute, or select fewer matrices"

    @property
    def data_hash(self) -> str:
        return self.data.digest

    @property
    def changes_nothing(self) -> bool:
        return self.config.keep == 1.0

    @property
    def parameters(self) -> int:
        """Of the selected matrices, dense."""
        return sum(size.dense for size in self.sizes.values())

    def lines(self) -> list[str]:
        schedule, train = self.schedule, self.data.train
        parts = f"{schedule.steps} steps with {schedule.events} events"
        after = f", then {self.factor_steps} of the factors" if self.factor_steps else ""
        share = schedule.stored / self.inventory.parameters
        rest = 1 - self.parameters / self.inventory.parameters
        return [
            f"{len(self.selected)} matrices of {self.parameters:,} parameters; {schedule.stored:,} are kept",
            f"of the whole model {share + rest:.1%} stays; {rest:.1%} is not in these matrices",
            f"{len(train):,} rows, {train.tokens:,} tokens, {train.targets:,} of them learnt; "
            f"{len(self.data.validation):,} rows for validation",
            f"{parts}{after}",
            f"memory about {self.memory / 1e9:.2f} GB",
        ]

    def to_dict(self) -> dict[str, Any]:
        schedule, train = self.schedule, self.data.train
        return {
            **super().to_dict(),
            "matrices": len(self.selected),
            "parameters": self.parameters,
            "parameters_at_end": schedule.stored,
            "least_keep": least(self.sizes) / self.parameters,
            "steps": schedule.steps,
            "events": schedule.events,
            "factor_steps": self.factor_steps,
            "rows": len(train),
            "tokens": train.tokens,
            "rows_cut": train.cut,
        }


def make_plan(source: Source, config: BaselConfig, inputs: Inputs) -> Plan:
    """Read the rows, count what there is and what is to be left.

    Raises:
        InputError: Whatever is wrong with the rows, the selection or the budget.
    """
    inventory = source.inventory
    selected = select(inventory.matrices, config.select)
    for matrix in selected:
        source.tensor_of(matrix)
    sizes = {matrix.name: _size(matrix, config) for matrix in selected}
    parameters = sum(size.dense for size in sizes.values())
    if config.keep * parameters < least(sizes):
        lowest = math.ceil(1000 * least(sizes) / parameters) / 1000
        raise InputError(
            f"--keep {config.keep:g} leaves {round(config.keep * parameters):,} parameters; one basis and "
            f"the new ones of each of the {len(sizes)} matrices need {least(sizes):,}",
            f"give --keep {lowest:g} or more, or fewer --extra-rank",
        )
    data = read_data(source, config, inputs.tasks)
    per_epoch = -(-len(data.train) // _task_rows(config))
    notes = []
    if data.train.cut:
        notes.append(f"{data.train.cut:,} prompts lose their beginning to fit the context")
    if inventory.refused:
        notes.append(f"{len(inventory.refused)} matrices are left out: {inventory.refused[0].refused}")
    return Plan(
        config=config,
        notes=tuple(notes),
        memory=_memory(inventory, sizes, data, config),
        inventory=inventory,
        selected=selected,
        sizes=sizes,
        data=data,
        schedule=_schedule(config, sizes, per_epoch, round(config.keep * parameters)),
        factor_steps=config.epochs[2] * per_epoch,
    )


def _size(matrix: Matrix, config: BaselConfig) -> Size:
    m, n = matrix.shape
    extra = max(1, round(min(m, n) / PER_EXTRA_BASIS)) if config.extra_rank is None else config.extra_rank
    return Size(m, n, min(extra, min(m, n)))


def _task_rows(config: BaselConfig) -> int:
    """Rows of the task in a step."""
    if config.replay is None:
        return config.rows
    return max(1, config.rows - max(1, round(config.replay_share * config.rows)))


def _schedule(config: BaselConfig, sizes: Mapping[str, Size], per_epoch: int, stored: int) -> Schedule:
    keeping, dropping, _ = config.epochs
    steps = (keeping + dropping) * per_epoch
    events = config.prune_events or max(1, min(MOST_EVENTS, steps // STEPS_PER_EVENT))
    first = max(1, keeping * per_epoch)
    if events > steps - first:
        raise InputError(
            f"{events} events do not fit into {steps - first} steps", "lower --prune-events, or more --epochs"
        )
    trained = sum(int(size.as_bases(min(size.m, size.n))) for size in sizes.values())
    return Schedule(first, steps, events, trained, stored)


def _memory(inventory: Inventory, sizes: Mapping[str, Size], data: Data, config: BaselConfig) -> int:
    """The model, all bases of its matrices, what is trained with gradient and averages, and activations."""
    bases = sum(int(size.as_bases(min(size.m, size.n))) for size in sizes.values())
    kept = round(config.keep * sum(size.dense for size in sizes.values()))
    width = max(m.in_features for m in inventory.matrices)
    tokens = min(8192, config.rows * data.longest)
    layers = 2 if config.recompute else len(inventory.blocks)
    activations = 4 * tokens * (12 * width * layers + 4 * data.longest * layers)
    part_1 = 4 * (inventory.parameters + bases) + activations
    part_2 = 4 * (inventory.parameters + 4 * kept) + activations
    return 500_000_000 + max(part_1, part_2)
