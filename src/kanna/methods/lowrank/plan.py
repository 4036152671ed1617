"""What low-rank replacement is going to do, before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from kanna.calibration.trial import Trial
from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.forms import Form, LowRank, Pivot
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.config import ANCHOR_BELOW, CALIBRATED, LowRankConfig
from kanna.methods.lowrank.forecast import Stage, forecast, shapes_of
from kanna.methods.lowrank.gradients import LARGEST_FULL_METRIC
from kanna.methods.lowrank.ranks import allocate, kept_parameters
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.reporting.blocks import Table
from kanna.reporting.wording import seconds as duration
from kanna.reporting.wording import size, some
from kanna.runs.assemble import form_with
from kanna.runs.source import Source
from kanna.runs.step import Plan as AnyPlan

_TUCKER = (
    "tucker of a single matrix is its truncated SVD with the core folded into one factor: the same as plain"
)


@dataclass(frozen=True, kw_only=True)
class Plan(AnyPlan):
    """Which matrices, at what budget.

    Args:
        config: Resolved.
        inventory: Of the whole model.
        selected: What may be replaced.
        stored: Matrix name -> how it is stored now, of the selected ones.
        held: Module path -> its form now, of modules that are not dense.
        ranks: By matrix name, None for one that stays as it is; None for all until a survey decides them.
        windows: Calibration windows, or random tokens where there is no text.
        tried: What one call of the model showed; None where nothing is run.
        stages: What each will take, as far as blocks are run one at a time.
        seconds: Of the stages, where they are worth a forecast.
        streams: Of the files of work, bytes of hidden states.
    """

    config: LowRankConfig
    inventory: Inventory
    selected: tuple[Matrix, ...]
    stored: Mapping[str, Form]
    held: Mapping[str, Form]
    ranks: Ranks | None
    windows: Windows
    tried: Trial | None = None
    stages: Mapping[str, Stage] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    streams: int = 0

    less_memory: ClassVar[str] = (
        "lower --tokens or --batch, or choose --method whitened, whose blocks are run once"
    )

    less_space: ClassVar[str] = (
        "lower --tokens, choose --method anchored, or name a cache on another disk: KANNA_CACHE=DIR"
    )

    @property
    def trial(self) -> Trial:
        assert self.tried is not None
        return self.tried

    @property
    def is_unpadded(self) -> bool:
        """Whether blocks are run without padding."""
        return self.tried is not None and bool(self.tried.mixed or self.tried.irregular)

    @property
    def data_hash(self) -> str:
        return self.windows.digest

    @property
    def dense_parameters(self) -> int:
        """Of the selected matrices if they were all dense."""
        return sum(matrix.parameters for matrix in self.selected)

    @property
    def stored_parameters(self) -> int:
        """Of the selected matrices as they are stored now: what `keep` is a share of."""
        return sum(self.stored[matrix.name].parameters(*matrix.shape) for matrix in self.selected)

    @property
    def changes_nothing(self) -> bool:
        return self.config.keep == 1.0

    def kept(self, ranks: Ranks) -> int:
        """Parameters of the selected matrices at these ranks."""
        return kept_parameters(self.selected, ranks, self.config, self.stored)

    def forms(self) -> Mapping[str, Form] | None:
        if self.changes_nothing:
            return {}
        if self.ranks is None:
            return None
        kind = Pivot if self.config.storage == "pivot" else LowRank
        new = {name: kind(rank) for name, rank in self.ranks.items() if rank is not None}
        modules = dict.fromkeys(matrix.module for matrix in self.selected if matrix.name in new)
        parts = {path: [m for m in self.inventory.matrices if m.module == path] for path in modules}
        return {path: form_with(self.held.get(path), some, new) for path, some in parts.items()}

    def lines(self) -> list[str]:
        config, facts = self.config, self.to_dict()
        budget = f"rank {config.rank}" if config.rank else f"{facts['budget_parameters']:,} to keep"
        return [
            f"{len(self.selected)} matrices, {self.stored_parameters:,} parameters, {budget}; "
            f"method {config.method}, {config.allocation} ranks, outputs {config.outputs}, "
            f"{config.storage} storage",
            f"peak memory about {size(self.memory)}; of the files of work {size(self.streams)} are hidden "
            "states, fewer with fewer --tokens",
            *self._times(),
        ]

    def _times(self) -> list[str]:
        if not self.seconds:
            return []
        parts = ", ".join(f"{stage} {duration(value)}" for stage, value in self.seconds.items())
        return [f"about {duration(sum(self.seconds.values()))} on this machine: {parts}"]

    def tables(self) -> list[Table]:
        ranks = self.ranks or {}
        rows = [
            [
                matrix.name,
                f"{matrix.out_features} x {matrix.in_features}",
                str(matrix.break_even_rank),
                "after the survey" if self.ranks is None else str(ranks[matrix.name] or "as it is"),
            ]
            for matrix in self.selected
        ]
        return [Table("", ("matrix", ">shape", ">break-even", ">rank"), rows)]

    def to_dict(self) -> dict[str, Any]:
        budget = self.config.keep
        return {
            "config": self.config.model_dump(mode="json"),
            "matrices": len(self.selected),
            "dense_parameters": self.dense_parameters,
            "stored_parameters": self.stored_parameters,
            "budget_parameters": None if budget is None else int(budget * self.stored_parameters),
            "model_parameters": self.inventory.parameters,
            "ranks": self.ranks,
            "predicted_peak_memory_bytes": self.memory,
            "predicted_work_bytes": self.work_bytes,
            "predicted_stream_bytes": self.streams,
            "predicted_stages": {
                name: {"memory_bytes": stage.memory, "seconds": self.seconds.get(name)}
                for name, stage in self.stages.items()
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Passes:
    """How a model is run.

    Args:
        windows: Calibration windows, or random tokens to verify with where there is no text.
        has_text: Whether they are text.
        whole: Whether the model is in memory as a whole.
        backward: Bytes that a backward pass then needs.
        without: Why there are no gradients; empty where they can be had.
    """

    windows: Windows
    has_text: bool
    whole: bool = False
    backward: int = 0
    without: str = ""


def make_plan(source: Source, config: LowRankConfig, passes: Passes) -> Plan:
    """Decide what can be decided without reading a weight.

    Raises:
        InputError: An unknown model, a selection that matches nothing, a budget that cannot be reached, a
            method that needs text without text.
    """
    windows, has_text, without = passes.windows, passes.has_text, passes.without
    resolved = config.resolved(has_text, not without)
    notes = [_TUCKER] if config.method == "tucker" else []
    if resolved.keep != 1.0:
        _check_text(resolved, has_text, without)
    if config.allocation is None and has_text and without and config.keep is not None:
        notes.append(f"ranks are uniform and outputs weigh the same: {without}")
    if config.method is None and resolved.method == "anchored":
        notes.append(
            f"keep is below {ANCHOR_BELOW}: anchored, which fits each block to what the compressed ones "
            "before it hand on, in one more walk through all blocks (--method whitened does without)"
        )
    inventory = source.inventory
    selected = select(inventory.matrices, resolved.select)
    # An encoder-decoder is not run while it is compressed.
    is_run = resolved.keep != 1.0 and not inventory.has_decoder_apart
    if is_run:
        selected, more = _replaceable(source, resolved, selected)
        notes += more
    if not source.is_planned:
        for matrix in selected:
            source.tensor_of(matrix)
    stored = {matrix.name: source.form(matrix) for matrix in selected}
    even = resolved.model_copy(update={"allocation": "uniform"})
    ranks = allocate(selected, {}, even, stored)  # raises where the budget cannot be reached
    if inventory.refused:
        notes.append(f"{len(inventory.refused)} matrices are left out: {inventory.refused[0].refused}")
    factored = sum(hasattr(form, "rank") for form in stored.values())
    if factored:
        notes.append(
            f"{factored} of the selected matrices are factors already: keep is a share of what is stored now"
        )
    tokens = windows.tokens if has_text else 0
    trial = source.trial if is_run else None
    kept = kept_dtype(source.checkpoint).itemsize
    shapes = shapes_of(
        inventory,
        selected,
        stored,
        resolved,
        source.checkpoint.config,
        (len(windows.ids), windows.ids.shape[1]),
        tokens,
        kept,
        source.dtype(selected[0].module).itemsize,
        has_text and not passes.whole and not inventory.has_decoder_apart,
    )
    stages = forecast(shapes)
    return Plan(
        config=resolved,
        notes=tuple(notes),
        memory=_memory(stages, inventory, resolved, passes, trial),
        work_bytes=shapes.work,
        cache_bytes=shapes.cache,
        beside_bytes=shapes.beside,
        stages=stages,
        streams=shapes.streams if has_text else 0,
        inventory=inventory,
        selected=selected,
        stored=stored,
        held=dict(source.forms),
        ranks=None if resolved.allocation == "global" else ranks,
        windows=windows,
        tried=trial,
    )


def _replaceable(
    source: Source, config: LowRankConfig, selected: tuple[Matrix, ...]
) -> tuple[tuple[Matrix, ...], list[str]]:
    """The matrices that can be replaced, and what to say of the others.

    Raises:
        InputError: None can, or what was asked for cannot be done with this model.
    """
    trial = source.trial
    if config.refine and trial.repeated:
        raise InputError(
            f"{source.inventory.architecture} runs a block several times; --refine trains it on one run",
            "leave out --refine",
        )
    read = [m.name for m in selected if m.module in trial.read]
    uncalled = [m.name for m in selected if m.module in trial.uncalled - trial.read]
    left = set(read) | (set(uncalled) if config.method in CALIBRATED else set())
    notes = [f"{some(read)} left dense: the model's own code reads its weight or bias"] if read else []
    if uncalled and config.method in CALIBRATED:
        notes.append(f"{some(uncalled)} left dense: the model does not call it on text")
    if trial.irregular:
        notes.append(f"{trial.irregular}: the whole model is in memory")
    kept = tuple(matrix for matrix in selected if matrix.name not in left)
    if not kept:
        raise InputError("; ".join(notes), "select other matrices")
    return kept, notes


def _check_text(config: LowRankConfig, has_text: bool, without: str) -> None:
    """Raise InputError where the method needs text or gradients that there are not."""
    config.check_given(has_text=has_text)
    if config.needs_gradients and without:
        raise InputError(
            f"allocation {config.allocation}, outputs {config.outputs} and method {config.method} need "
            f"gradients, and there are none: {without}",
            "choose --allocation uniform --outputs equal, or give text on a machine with more memory",
        )


def kept_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """In which states are kept for the way back: in 16 bits where most of the weights are stored in no more.

    Each state is rounded once, by 0.4 % at most: nothing goes on from it but sums over thousands of tokens.
    """
    sizes = [(checkpoint.dtype(name).itemsize, tensor.bytes) for name, tensor in checkpoint.tensors.items()]
    small = sum(held for size, held in sizes if size < 4)
    return torch.bfloat16 if 2 * small > checkpoint.bytes else torch.float32


def _memory(
    stages: Mapping[str, Stage],
    inventory: Inventory,
    config: LowRankConfig,
    passes: Passes,
    trial: Trial | None,
) -> int:
    """Peak bytes: of the stages, or with the whole model, its gradients and the statistics of all outputs."""
    most = max(stage.memory for stage in stages.values())
    if config.needs_gradients and passes.whole:
        widths = [m.out_features for m in inventory.matrices]
        outputs = 8 * sum(width**2 if width <= LARGEST_FULL_METRIC else width for width in widths)
        return max(most + 4 * inventory.parameters, passes.backward + outputs)
    return most + (4 * inventory.parameters if passes.whole else 0)
