"""The step `tune`: what the runner asks of it."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanna.checkpoint import lineage, scale_journal, scale_sets
from kanna.checkpoint.scale_sets import ScaleSet
from kanna.checkpoint.set_names import FOLDER
from kanna.methods.peqa.config import TuneConfig, folder
from kanna.methods.peqa.execute import Outcome, execute
from kanna.methods.peqa.plan import Plan, make_plan
from kanna.reporting.wording import size
from kanna.runs.source import Source
from kanna.runs.step import Addition, Changes, Description, Inputs, Job, Step


@dataclass(frozen=True, kw_only=True)
class Tuned(Changes):
    """A set of scales, and how it was learnt."""

    outcome: Outcome = field()
    made: ScaleSet = field()


class TuneStep(Step[Plan]):
    """Takes whole numbers, also within other forms; what is not of them stays as it is."""

    accepts = ("dense", "low_rank", "rows", "pivot", "int")

    def plan(self, source: Source, config: TuneConfig, inputs: Inputs) -> Plan:
        return make_plan(source, config, inputs)

    def apply(self, plan: Plan, job: Job) -> Tuned:
        outcome = execute(job, plan)
        source, config = job.source.directory, plan.config

        def made(scores: Mapping[str, Any]) -> ScaleSet:
            return scale_sets.made(
                config.name,
                scale_sets.codes_hash(source),
                outcome.changes,
                base=job.source.name,
                data_hash=plan.data_hash,
                config=config.model_dump(mode="json"),
                versions=lineage.versions(),
                scores=dict(scores),
            )

        def activate(directory: Path) -> None:
            for name in scale_sets.names(source):
                if name != config.name:  # the codes are the same, so other tasks go along
                    shutil.copytree(source / FOLDER / name, directory / FOLDER / name)
            scale_journal.use(directory, config.name)

        addition = Addition(
            folder(config), lambda place, scores: scale_sets.write(place, made(scores)), plan.bytes, activate
        )
        return Tuned(recorded=outcome.recorded, addition=addition, outcome=outcome, made=made({}))

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, Tuned)
        record, outcome = changes.made.record, changes.outcome
        trained = outcome.trained
        after = dict(trained.validation).get(trained.best)
        figures = {
            "scales": record.name,
            "trainable": record.numbers,
            "flipped": record.flipped,
            "steps": len(trained.losses),
            "best_step": trained.best,
            "loss": [trained.losses[0], trained.losses[-1]],
            "losses": list(trained.losses),
            "validation": [list(one) for one in trained.validation],
            "held_out_loss_before": outcome.before,
            "held_out_loss_after": after,
        }
        if trained.stopped:
            figures["stopped"] = trained.stopped
        if outcome.forgotten is not None:
            figures["text_loss_before"] = outcome.forgotten.before
            figures["text_loss_after"] = outcome.forgotten.after
        return Description(
            summary=f"{{base}} with the scales {record.name!r}, learnt on a task; codes are as they were.",
            figures=figures,
            rows=(("numbers learnt", f"{record.numbers:,}"),),
            lines=tuple(_lines(plan, changes, after)),
            tags=("fine-tuned",),
        )


def _lines(plan: Plan, changes: Tuned, after: float | None) -> Iterator[str]:
    record, outcome = changes.made.record, changes.outcome
    trained = outcome.trained
    yield f"{record.numbers:,} numbers learnt ({record.granularity}), {size(4 * record.numbers)} of scales"
    stopped = f"; stopped early: {trained.stopped}" if trained.stopped else ""
    yield f"{len(trained.losses)} steps, loss {trained.losses[0]:.4f} to {trained.losses[-1]:.4f}{stopped}"
    if after is not None:
        at = f"at step {trained.best}"
        if after > outcome.before:
            at += ", which is more: try a lower --rate, fewer steps or more rows"
        yield f"on rows that were not learnt: loss {outcome.before:.4f} before, {after:.4f} {at}"
    if record.flipped:
        share = record.flipped / record.numbers
        yield f"{record.flipped:,} of them ({share:.1%}) changed the sign of their scales; see --scale-range"
    else:
        yield "no scale changed its sign"
    lost = outcome.forgotten
    if lost is not None:
        moved = f"loss {lost.before:.4f} before, {lost.after:.4f} after"
        yield f"text that was not learnt ({lost.tokens:,} tokens): {moved}"
    name = plan.config.name
    yield f"the set is {name!r}; inside its model it is put to use by: kanna scales use DIR {name}"


STEP = TuneStep()
