"""The step `lowrank`: what the runner asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kanna.calibration.text import windows_of
from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows, random_windows
from kanna.linalg.allocation import Ranks
from kanna.measure.rates import measured_rates
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.enough import enough
from kanna.methods.lowrank.execute import Outcome, execute
from kanna.methods.lowrank.in_memory import backward_memory, fits_in_memory
from kanna.methods.lowrank.plan import Passes, Plan, make_plan
from kanna.methods.lowrank.two_stacks import NO_GRADIENTS, pairs_of, settings_for, with_whole_model
from kanna.reporting.blocks import MEASURED, Table
from kanna.reporting.wording import percent, some
from kanna.runs.blocks import probe_file
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Recorded, Step
from kanna.tasks.tokens.tokenizer import context_length

_PROBE_LENGTH = 64
# Operations from which on a run is long enough to be foretold.
_LONG = 2e12


class LowRankStep(Step[Plan]):
    """Dense matrices and factors alike: of what is factored already, smaller ranks."""

    accepts = ("low_rank", "pivot", "rows", "dense")

    def plan(self, source: Source, config: LowRankConfig, inputs: Inputs) -> Plan:
        if source.inventory.has_decoder_apart:
            return _plan_of_two(source, config, inputs)
        calibrated = inputs.calibration is not None and config.keep != 1.0
        if not calibrated:
            return make_plan(source, config, _without_text(source, config))
        assert inputs.calibration is not None
        windows = windows_of(
            source.checkpoint,
            inputs.calibration,
            config.tokens,
            config.context,
            config.seed,
            inputs.chat,
            inputs.joiner,
        )
        passes = _passes(source, windows, config)
        return _timed(make_plan(source, config, passes), inputs)

    def apply(self, plan: Plan, job: Job) -> "LowRankChanges":
        kept: Ranks = {matrix.name: None for matrix in plan.selected}
        outcome = Outcome({}, kept, job.workspace) if plan.changes_nothing else execute(job, plan)
        states = {visit: job.workspace.load(probe_file(visit))["probe"] for visit in range(outcome.visits)}
        first = plan.windows.lone if plan.is_unpadded else plan.windows.first(1)
        recorded = Recorded(first, states) if states else None
        return LowRankChanges(
            outcome.forms,
            outcome.shapes(),
            outcome.pieces,
            recorded,
            ranks=outcome.ranks,
            unfelt=tuple(outcome.unfelt),
            unread=tuple(outcome.unread),
            energies=outcome.energies,
        )

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, LowRankChanges)
        figures, config = _figures(plan, changes.ranks), plan.config
        lines = []
        if changes.unread:
            figures["never_read"] = list(changes.unread)
            lines.append(f"{some(changes.unread)}: read nothing on this text, left as it was")
        if changes.unfelt:
            figures["without_gradient"] = list(changes.unfelt)
            lines.append(
                f"{some(changes.unfelt)}: the loss does not feel these outputs on this text; all their "
                "directions weigh the same"
            )
        rows = [("parameters of the selected matrices kept", f"{figures['keep_selected']:.4f}")]
        if "keep_selected_of_dense" in figures:
            share = f"{figures['keep_selected_of_dense']:.4f}"
            rows.append(("parameters kept of what these matrices had when they were dense", share))
        replaced = f"{figures['matrices_replaced']} of {figures['matrices_selected']}"
        return Description(
            summary="Weight matrices of {base} replaced by low-rank factors "
            f"(method {config.method}, {config.allocation} ranks, {config.storage} storage).",
            figures=figures,
            rows=(*rows, ("matrices replaced", replaced)),
            console=(_table(plan, figures),),
            lines=(f"{replaced} matrices replaced", *lines),
            tags=("low-rank",),
        )

    def advise(self, plan: Plan, changes: Changes, share: float) -> str | None:
        assert isinstance(changes, LowRankChanges)
        return enough(plan, changes.energies, changes.ranks, share) if changes.energies else None


@dataclass(frozen=True)
class LowRankChanges(Changes):
    """Changes, ranks of the selected matrices (None for one that stays), what is not felt or read, curves."""

    ranks: Ranks = field(default_factory=dict)
    unfelt: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    energies: Mapping[str, Tensor] = field(default_factory=dict)


def _plan_of_two(source: Source, config: LowRankConfig, inputs: Inputs) -> Plan:
    """The plan for a model with an encoder and a decoder."""
    chosen = settings_for(source, config)
    if inputs.calibration is None or config.keep == 1.0:
        return make_plan(source, chosen, _without_text(source, chosen))
    pairs = pairs_of(source, chosen, inputs)
    return with_whole_model(make_plan(source, chosen, Passes(pairs, True, without=NO_GRADIENTS)))


def _without_text(source: Source, config: LowRankConfig) -> Passes:
    whole = not source.inventory.has_decoder_apart and config.keep != 1.0 and not _streams(source)
    return Passes(_random_probe(source, config), False, whole, without="no calibration text")


def _streams(source: Source) -> bool:
    """Whether the model's blocks come from its files one at a time."""
    return Walker(source.checkpoint, source.inventory, trial=source.trial).streams


def _passes(source: Source, windows: Windows, config: LowRankConfig) -> Passes:
    """One block in memory at a time where the model can be run so; else the whole of it, if it fits."""
    whole = not _streams(source)
    if not source.trial.has_logits:
        without = f"{source.inventory.architecture} has no logits and so no loss"
        return Passes(windows, True, whole, without=without)
    if not whole:
        return Passes(windows, True)
    backward = backward_memory(source.checkpoint, windows, config.batch)
    if fits_in_memory(backward):
        return Passes(windows, True, whole, backward)
    why = "the model cannot be run block by block, and does not fit in memory for a backward pass"
    return Passes(windows, True, whole, without=why)


def _timed(plan: Plan, inputs: Inputs) -> Plan:
    """The plan with the seconds of its stages, where they are many: this machine is timed for that."""
    if not plan.stages or sum(stage.products + stage.precise for stage in plan.stages.values()) < _LONG:
        return plan
    rates = measured_rates(inputs.cache, inputs.device)
    return replace(plan, seconds={name: stage.seconds(rates) for name, stage in plan.stages.items()})


def _random_probe(source: Source, config: LowRankConfig) -> Windows:
    settings: Any = source.skeleton.config
    vocabulary = int(getattr(settings.get_text_config(), "vocab_size", 2))
    length = min(_PROBE_LENGTH, context_length(source.checkpoint.config, None, None))
    return random_windows(vocabulary, length, config.seed)


def _figures(plan: Plan, ranks: Ranks) -> dict[str, Any]:
    replaced = {name: rank for name, rank in ranks.items() if rank is not None}
    kept = plan.kept(ranks)
    figures = {
        "keep_selected": kept / plan.stored_parameters,
        "matrices_selected": len(plan.selected),
        "matrices_replaced": len(replaced),
        "ranks": replaced,
    }
    if plan.stored_parameters == plan.dense_parameters:
        return figures
    return {**figures, "keep_selected_of_dense": kept / plan.dense_parameters}


def _table(plan: Plan, figures: dict[str, Any]) -> Table:
    before = plan.stored_parameters
    rows = [
        ("before", f"{before:,}"),
        ("after", f"{round(before * figures['keep_selected']):,}"),
        ("kept", percent(figures["keep_selected"])),
    ]
    return Table("", ("", ">selected matrices (parameters)"), rows, MEASURED)


STEP = LowRankStep()
