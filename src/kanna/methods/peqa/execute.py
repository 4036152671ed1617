"""Scales learn, on the model in memory; a killed run goes on where it was."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.checkpoint.applied import int_modules, learnable
from kanna.checkpoint.loader import load_weights
from kanna.methods.peqa.plan import Plan
from kanna.runs.probe import record
from kanna.runs.step import Job, Recorded
from kanna.tasks.options import EvalOptions
from kanna.training.forgotten import Forgotten, forgotten, text_loss
from kanna.training.loop import Course, Material, Nothing, Trained, train
from kanna.training.loss import summed_loss
from kanna.training.optimiser import Group, Optimiser
from kanna.training.schedule import eighth


@dataclass(frozen=True)
class Outcome:
    """What was learnt.

    Args:
        changes: Module path -> d.
        trained: How it went.
        before: Loss on rows that are not learnt, before.
        forgotten: Loss on text that is not learnt; None where there is none.
        recorded: What the tuned model computes on some rows.
    """

    changes: Mapping[str, Tensor]
    trained: Trained
    before: float
    forgotten: Forgotten | None
    recorded: Recorded


class Within(Nothing):
    """Keeps scales within a range, times what they were."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low - 1, high - 1

    def after(self, step: int, optimiser: Optimiser) -> None:
        for change in optimiser.parameters.values():
            change.data.clamp_(self._low, self._high)


def execute(job: Job, plan: Plan) -> Outcome:
    """Do what `plan` says."""
    config, device = plan.config, job.inputs.device
    model = load_weights(job.source.checkpoint, torch.float32, None, None).to(device)
    model.eval().requires_grad_(False)
    learnt = learnable(model, config.granularity)
    _keep_inputs_where_needed(model, plan)
    before_text = text_loss(model, plan.data.text)
    teacher = None if plan.teacher is None else plan.teacher.loaded(EvalOptions(device=str(device)))
    data = plan.data
    material = Material(data.train.all, plan.batches, data.replay, data.validation.all, teacher)
    course = Course(
        steps=plan.steps,
        validate_every=eighth(plan.steps),
        first=True,  # and never kept: a few rows that are held out may be better known than the task is
        seed=config.seed,
        precision=config.precision,
        recompute=config.recompute,
    )
    between = Nothing() if config.scale_range is None else Within(*config.scale_range)
    directory = job.workspace.directory / f"scales-{data.digest[:12]}"
    optimiser = Optimiser([Group(learnt, config.rate)])
    trained = train(model, optimiser, material, course, directory, between, job.progress)
    if plan.teacher is not None:
        plan.teacher.release()
    changes = {path: parameter.detach().cpu().clone() for path, parameter in learnt.items()}
    lost = forgotten(before_text, model, data.text)
    rows = [example.ids for example in data.train.all]
    return Outcome(
        changes, trained, trained.validation[0][1], lost, record(model, plan.source.inventory, rows)
    )


def _keep_inputs_where_needed(model: nn.Module, plan: Plan) -> None:
    """Try a row: a model that changes outputs in place spoils what is kept of them, which PyTorch notices."""
    try:
        summed_loss(model, plan.data.train.all[:1]).backward()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        for module in int_modules(model).values():
            module.keeps_inputs = True
    for parameter in model.parameters():
        parameter.grad = None
