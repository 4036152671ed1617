"""The step `basel`: what the runner asks of it."""

from dataclasses import dataclass, field

from kanna.checkpoint.writer import write_json
from kanna.methods.basel import telling
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.execute import Outcome, execute
from kanna.methods.basel.plan import Plan, make_plan
from kanna.methods.basel.record import result
from kanna.methods.basel.results import RESULT
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Step


@dataclass(frozen=True)
class BaselChanges(Changes):
    """Changes, and how they were learnt; None where there was nothing to learn."""

    outcome: Outcome | None = field(default=None)


class BaselStep(Step[Plan]):
    """Dense models only: factors have lost the bases that are to be chosen from."""

    accepts = ("dense",)
    instead = "start from the model before: bases that were dropped cannot be chosen any more"

    def plan(self, source: Source, config: BaselConfig, inputs: Inputs) -> Plan:
        return make_plan(source, config, inputs)

    def apply(self, plan: Plan, job: Job) -> BaselChanges:
        if plan.changes_nothing:
            return BaselChanges()
        outcome = execute(job, plan)
        told = result(plan, outcome, job.source.name)
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in outcome.tensors.items()}
        return BaselChanges(
            forms=outcome.forms,
            shapes=shapes,
            tensors=lambda: iter(outcome.tensors.items()),
            finish=lambda directory: write_json(directory / RESULT, told.to_dict()),
            recorded=outcome.recorded,
            outcome=outcome,
        )

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, BaselChanges)
        outcome = changes.outcome
        if outcome is None:
            return Description("All bases of {base} kept: nothing is changed.", {"keep_selected": 1.0})
        told = telling.table(plan, outcome)
        found = telling.figures(plan, outcome)
        rows = (
            ("parameters of the selected matrices kept", f"{found['keep_selected']:.4f}"),
            ("parameters of the whole model kept", f"{found['keep_model']:.4f}"),
            ("the same with nothing left of these matrices", f"{found['least_keep_model']:.4f}"),
            ("rows learnt", f"{len(plan.data.train):,}"),
        )
        return Description(
            summary="Bases of the weight matrices of {base} chosen by what a task needs, and trained on it.",
            figures=found,
            rows=rows,
            tables=(told,),
            console=(told,),
            lines=tuple(telling.lines(plan, outcome)),
            tags=("low-rank", "fine-tuned"),
        )


STEP = BaselStep()
