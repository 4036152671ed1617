"""The one way from an opened model to a verified, judged and recorded directory; it knows no method.

open, verify the lineage, read the criteria, plan, (dry run ends here), refuse an existing output, check
memory and space, announce, take the folder of unfinished work; then for every step: apply, write, reload,
probe, judge (the last one), card, append to the lineage, rename; at last the record of the run.

The model between two steps is a directory in the folder of unfinished work. It is whole or not there, so a
killed chain goes on at the step it was in, and it is removed when the next one is whole.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from kanna.checkpoint import card, lineage
from kanna.checkpoint.side_files import side_files
from kanna.checkpoint.writer import output_directory, write_json
from kanna.errors import InputError
from kanna.models.device import device_of
from kanna.progress import Progress
from kanna.result import Shown
from kanna.result import replace as replace_fields
from kanna.runs.account import card_of, record, scores_of, sizes, with_left_out
from kanna.runs.begun import parts_of
from kanna.runs.cache_limit import cache_limit, trim_cache
from kanna.runs.compare import judge
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.next_steps import share_that_passes
from kanna.runs.opened import Opened
from kanna.runs.output import plan_layout, write_model
from kanna.runs.places import cache_directory, same_disk, unfinished, usable_cache
from kanna.runs.probe import Verdict, verify_output
from kanna.runs.record import Stages, run_record
from kanna.runs.request import RECIPE, Call, Request, recipe_text
from kanna.runs.room import check_memory, check_space
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Plan, Step
from kanna.runs.unfinished import about_to_name, clear, replaces, unfinished_work
from kanna.runs.workspace import Workspace
from kanna.tasks.evaluate import Prepared
from kanna.tasks.verdict.comparison import NOT_JUDGED, Comparison, VerdictStatus
from kanna.tasks.verdict.tolerance import FAIL

Announce = Callable[[Plan], None]


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Args:
        method: Its name in the lineage.
        plan: What was to be done; None for a step that an earlier, killed run had finished, or that cannot
            be planned before the steps ahead of it have run.
        figures: Sizes before and after, and the method's own.
        verdict: Whether what was written is what was computed, which no task has judged; None for a dry run.
        description: None for a dry run and for steps of an earlier run.
    """

    method: str
    plan: Plan | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    description: Description | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, repr=False)
class RunResult(Shown):
    """What a run did.

    Args:
        out: The directory; None for a dry run.
        steps: One by one.
        comparison: With the base on the user's tasks; None where none were given.
        run: Times and memory, also in `OUT.run.json`.
    """

    out: Path | None
    steps: tuple[StepResult, ...]
    comparison: Comparison | None = None
    run: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        methods = ", ".join(step.method for step in self.steps)
        if self.out is None:
            return f"<{type(self).__name__} of {methods}: planned, nothing was written>"
        return f"<{type(self).__name__} of {methods}: {self.status}; written: {self.out}>"

    @property
    def last(self) -> StepResult:
        return self.steps[-1]

    @property
    def plan(self) -> Any:
        """Of the last step."""
        return self.last.plan

    @property
    def figures(self) -> Mapping[str, Any]:
        """Of the last step."""
        return self.last.figures

    @property
    def verdict(self) -> Verdict | None:
        """Of what the last step wrote."""
        return self.last.verdict

    @property
    def details(self) -> Mapping[str, Any]:
        """What the last step has to say beside its figures."""
        return {} if self.last.description is None else self.last.description.details

    @property
    def sound(self) -> bool:
        """Whether everything that was written, and read back, is what was computed."""
        return all(step.verdict is None or step.verdict.passed for step in self.steps)

    @property
    def status(self) -> VerdictStatus:
        """What tasks say of the result: without any it is not judged."""
        if not self.sound:
            return FAIL
        return NOT_JUDGED if self.comparison is None else self.comparison.status

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self.sound and (self.comparison is None or self.comparison.passed)

    def to_dict(self) -> dict[str, Any]:
        chain = {"steps": [step.to_dict() for step in self.steps]} if len(self.steps) > 1 else {}
        return {
            "schema_version": 1,
            "kind": "run" if chain else self.last.method,
            "out": None if self.out is None else str(self.out),
            "status": None if self.out is None else self.status,
            **chain,
            **{key: value for key, value in self.last.to_dict().items() if key != "method"},
            **self.details,
            "bytes": self.figures.get("model_bytes_after"),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "run": dict(self.run),
        }


@dataclass(frozen=True)
class _Ready:
    """A request that was read and checked.

    Args:
        source: The model that the chain starts from.
        inputs: For every step.
        plans: Of the steps as far as they are known; the first one always is.
        prepared: The tasks of the criteria, read.
    """

    request: Request
    source: Source
    inputs: Inputs
    plans: tuple[Plan | None, ...]
    prepared: Prepared | None


def carry_out(
    request: Request, announce: Announce = lambda _: None, progress: Progress = lambda *_: None
) -> RunResult:
    """Do what a request asks for.

    Args:
        announce: Called with the plan of each step before its long work begins.
        progress: Called with (stage, done, total).

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    started = time.perf_counter()
    if request.out is None and not request.dry_run:
        raise InputError("no output directory was given", "add --out DIR")
    request.options.check_metric(has_task=request.criteria is not None)
    ready = _prepare(request)
    if request.dry_run:
        planned = zip(request.calls, ready.plans, strict=True)
        told = [(call.name, plan, {} if plan is None else plan.foretold()) for call, plan in planned]
        return RunResult(None, tuple(StepResult(*each) for each in told))
    replace = replaces(request.target, request.force, request.resume)
    _check_ready(ready, replace)
    stages = Stages(progress)
    facts = _fingerprint(ready)
    key, parts = lineage.digest_of(facts), parts_of(facts)
    with unfinished_work(request.target, key, request.resume, request.force, parts=parts) as directory:
        steps, compared = _run_steps(ready, directory, replace, announce, stages.report)
        clear(directory)
    run = run_record(started, stages.seconds, request.device)
    if any(call.method.calibration for call in request.calls):
        run["cache"] = trim_cache(ready.inputs.cache).to_dict()
    lineage.write_run_record(request.target, run)
    return RunResult(request.target, steps, compared, run)


def carry_out_within(
    request: Request,
    directory: Path,
    announce: Announce = lambda _: None,
    progress: Progress = lambda *_: None,
) -> RunResult:
    """The same as the end of longer work, such as a search, that holds the folder of unfinished work already.

    Args:
        directory: That folder; whoever made it removes it and writes the record of the run.
    """
    ready = _prepare(request)
    _check_ready(ready, request.force)
    steps, compared = _run_steps(ready, directory, request.force, announce, progress)
    return RunResult(request.target, steps, compared)


def _prepare(request: Request) -> _Ready:
    """Open, verify, read the criteria, plan. Reads headers, and weights only where a plan depends on them."""
    device = device_of(request.device)
    finite = request.calls[0].method.load_step().needs_finite
    source = Source.open(request.opened or _opened(request, finite), finite=finite)
    _ = source.lineage  # compares the files with what was recorded
    prepared = None
    if request.criteria is not None:
        prepared = source.opened.prepared_for(request.criteria, request.options)
    calibration = None if request.calibration is None else Path(request.calibration).expanduser()
    if calibration is not None and not any(call.method.calibration for call in request.calls):
        names = " and ".join(dict.fromkeys(call.method.name for call in request.calls))
        raise InputError(f"{names} reads no calibration text", "leave calibration out")
    tasks = () if prepared is None else prepared.tasks
    cache = request.cache or cache_directory()
    options = request.options
    inputs = Inputs(
        calibration,
        device,
        cache,
        tasks=tasks,
        first=source.opened,
        chat=options.chat,
        joiner=options.joiner,
    )
    cache_limit(cache)  # refused now where it is no number
    plans = _plans(request, source, inputs)
    if plans[0] is not None and (note := _fitted_to_what_judges(inputs)):
        plans[0] = replace(plans[0], notes=(*plans[0].notes, note))
    return _Ready(request, source, inputs, tuple(plans), prepared)


def _fitted_to_what_judges(inputs: Inputs) -> str:
    """What is to be said where the calibration text is the very file of a task; empty where it is not."""
    if inputs.calibration is None or not inputs.calibration.is_file():
        return ""
    digest = lineage.file_digest(inputs.calibration)
    same = [task.name for task in inputs.tasks if task.digest == digest]
    return (
        f"the model is fitted to the very rows of {same[0]} that judge it, which flatters it: calibrate on "
        "other rows"
        if same
        else ""
    )


def _opened(request: Request, finite: bool) -> Opened:
    """What is added to a model starts from the model itself, whatever else has been added to it."""
    return Opened.open(request.model, finite=finite, scales=None if request.inside else request.scales)


def _plans(request: Request, source: Source, inputs: Inputs) -> list[Plan | None]:
    """The first step's plan, and those of later steps while forms are known without running anything."""
    plans: list[Plan | None] = []
    ahead: Source | None = source
    for call in request.calls:
        if ahead is None:
            plans.append(None)
            continue
        plan = _plan(call, ahead, inputs)
        plans.append(plan)
        forms = plan.forms()
        ahead = None if forms is None or len(plans) == len(request.calls) else ahead.after(forms)
    return plans


def _plan(call: Call, source: Source, inputs: Inputs) -> Plan:
    step = call.method.load_step()
    source.check_forms(step.accepts, call.method.name, step.instead)
    source.check_shapes()
    source.check_whole()
    given = inputs if call.method.calibration else replace(inputs, calibration=None)
    return step.plan(source, call.config, given)


def _check_ready(ready: _Ready, replace: bool) -> None:
    """An output in the way, memory, space, and numbers that are none: all before anything is written."""
    target = ready.request.target
    if not ready.request.inside:
        refuse_input(target, *(source.directory for source in (ready.source, *ready.inputs.others)))
    refuse_existing(target, replace)
    for plan in ready.plans:
        if plan is not None:
            refuse_input(target, *plan.reads)
            _check_memory(plan)
            _check_space(ready.request, plan, ready.inputs.cache)
    if ready.request.criteria is not None and not ready.source.opened.holds(ready.request.options):
        ready.source.opened.check_room(ready.request.options)
    _ = ready.source.hash  # reads all bytes; numbers that are not finite are named


def _check_memory(plan: Plan) -> None:
    if not plan.changes_nothing:
        check_memory(plan.memory, plan.less_memory)


def _check_space(request: Request, plan: Plan, cache: Path) -> None:
    """Files of work fit beside the output and in the cache; the output is checked before it is written."""
    out = request.target
    if plan.changes_nothing or (request.resume and unfinished(out)):
        return  # what goes on found room when it began, and has taken some of it
    if plan.cache_bytes and same_disk(out, cache):
        check_space(plan.work_bytes, out, f"work in {out.parent} and in {cache}", remedy=plan.less_space)
        return
    beside = plan.work_bytes if plan.beside_bytes is None else plan.beside_bytes
    check_space(beside, out, f"work in {out.parent}")
    check_space(plan.cache_bytes, cache / "statistics", f"statistics in {cache}", remedy=plan.less_space)


def _fingerprint(ready: _Ready) -> dict[str, Any]:
    """All that the bytes of the output depend on."""
    request, first = ready.request, ready.plans[0]
    assert first is not None
    later = len(request.calls) > 1 and ready.inputs.calibration is not None
    facts: dict[str, Any] = {
        "base": ready.source.hash,
        "steps": [
            [call.name, call.config.model_dump(mode="json"), call.origin.facts, call.origin.data_hash]
            for call in request.calls
        ],
        "first": first.to_dict()["config"],
        "data": first.data_hash,
        "calibration": lineage.file_digest(ready.inputs.calibration) if later else None,  # type: ignore[arg-type]
        "versions": lineage.versions(),
        "threads": torch.get_num_threads(),
        "device": request.device,
        "judged": _judged(ready),
    }
    if later and ready.inputs.chat:
        facts["chat"] = True
    if ready.inputs.joiner is not None:
        facts["joiner"] = ready.inputs.joiner
    if ready.source.opened.scales is not None:
        facts["scales"] = ready.source.opened.identity
    return facts


def _judged(ready: _Ready) -> object:
    """What the recorded verdict depends on."""
    criteria, prepared = ready.request.criteria, ready.prepared
    if criteria is None or prepared is None:
        return None
    rules = [[str(rule.task), rule.tolerance and rule.tolerance.text, rule.guard] for rule in criteria.rules]
    return [
        criteria.confidence,
        criteria.accept_empty,
        rules,
        [task.digest for task in prepared.tasks],
        str(ready.request.options),
    ]


def _run_steps(
    ready: _Ready, directory: Path, replace: bool, announce: Announce, progress: Progress
) -> tuple[tuple[StepResult, ...], Comparison | None]:
    request, count = ready.request, len(ready.request.calls)
    done = max((number for number in range(1, count) if _between(directory, number).is_dir()), default=0)
    results = _earlier(directory, done)
    source = ready.source if done == 0 else _reopened(ready, directory, done)
    compared = None
    for number, call in enumerate(request.calls[done:], done + 1):
        last = number == count
        plan = ready.plans[0] if number == 1 else _plan(call, source, ready.inputs)
        assert plan is not None
        if number > 1:
            _check_memory(plan)
        announce(plan)
        workspace = Workspace(directory / f"step-{number}")
        job = Job(source, workspace, _with_cache(ready.inputs, call, directory), progress)
        target = request.target if last else _between(directory, number)
        write = _add if request.inside else _write
        result, compared = write(ready, call, plan, job, target, replace and last, last)
        results.append(result)
        shutil.rmtree(workspace.directory, ignore_errors=True)
        shutil.rmtree(_between(directory, number - 1), ignore_errors=True)
        if not last:
            source = _reopened(ready, directory, number)
    return tuple(results), compared


def _with_cache(inputs: Inputs, call: Call, directory: Path) -> Inputs:
    """Statistics are kept in the folder of unfinished work where kanna's cache takes none."""
    if not call.method.calibration or usable_cache("statistics", inputs.cache) is not None:
        return inputs
    return replace(inputs, cache=directory / "cache")


def _between(directory: Path, number: int) -> Path:
    """The model after step `number` that the next one reads."""
    return directory / f"model-{number}"


def _reopened(ready: _Ready, directory: Path, number: int) -> Source:
    """What a step before wrote, named for what it is and not for where it lies."""
    names = "+".join(call.name for call in ready.request.calls[:number])
    finite = ready.request.calls[number].method.load_step().needs_finite
    return Source.open(_between(directory, number), f"{ready.source.name} + {names}", finite)


def _earlier(directory: Path, done: int) -> list[StepResult]:
    """Steps that a killed run had finished, as their lineage tells them."""
    if done == 0:
        return []
    recorded = lineage.read(_between(directory, done))
    assert recorded is not None
    return [
        StepResult(step.method, None, step.scores, Verdict(**step.scores["verdict"]))
        for step in recorded.steps[-done:]
    ]


def _write(
    ready: _Ready, call: Call, plan: Plan, job: Job, target: Path, replace: bool, last: bool
) -> tuple[StepResult, Comparison | None]:
    """Apply a step and write its directory; check, judge and record it; after that it gets its name."""
    step, request = call.method.load_step(), ready.request
    changes = step.apply(plan, job)
    layout = plan_layout(job.source, changes)
    beside = side_files(job.source.directory, job.source.checkpoint.files)
    needed = layout.bytes + changes.extra_bytes + beside.bytes
    with output_directory(target, force=replace, needed_bytes=needed) as partial:
        write_model(partial, job.source, layout, changes)
        changes.finish(partial)
        if changes.addition is not None:
            changes.addition.write(partial / changes.addition.folder, {})
            changes.addition.activate(partial)
        for name, data in call.origin.files.items():
            write_json(partial / name, data)
        job.progress("verify", 0, 1)
        if not (last and _shares_base(ready, job)):
            job.source.opened.release()
        judged = last and request.criteria is not None
        verdict, loaded = verify_output(
            partial, job.source.inventory, changes.recorded, layout.parameters, wanted=judged
        )
        job.progress("verify", 1, 1)
        description = step.describe(plan, changes)
        description = with_left_out(description, beside.left_out)
        figures = {**sizes(job.source, layout.bytes), **description.figures}
        compared = _judge(ready, partial, loaded, job.progress) if last else None
        del loaded
        if compared is not None and len(request.calls) == 1:
            compared = _advised(compared, step, plan, changes)
        if changes.addition is not None:
            measured = scores_of(figures, verdict, compared)
            changes.addition.write(partial / changes.addition.folder, measured)
        card.write(partial, card_of(job, target, description, figures, compared, bool(layout.forms)))
        if last:
            (partial / RECIPE).write_text(recipe_text(request), encoding="utf-8", newline="\n")
        record(partial, call, plan, job, figures, verdict, compared)
        if last:
            about_to_name(job.workspace.directory.parent, partial)
    return StepResult(call.name, plan, figures, verdict, description), compared


def _advised(compared: Comparison, step: Step[Any], plan: Plan, changes: Changes) -> Comparison:
    """After a fail, with what the step says of its settings; no advice ends a run."""
    share = share_that_passes(compared) if compared.status == FAIL else None
    try:
        advice = None if share is None else step.advise(plan, changes, share)
    except InputError as error:
        return replace_fields(compared, notes=(*compared.notes, f"no settings are advised: {error.problem}"))
    return compared if advice is None else replace_fields(compared, next_steps=(advice,))


def _add(
    ready: _Ready, call: Call, plan: Plan, job: Job, target: Path, replace: bool, last: bool
) -> tuple[StepResult, Comparison | None]:
    """Apply a step that adds to its source; check and judge what it makes of that; then it gets its name."""
    step, opened = call.method.load_step(), job.source.opened
    changes = step.apply(plan, job)
    addition = changes.addition
    assert addition is not None
    with output_directory(target, force=replace, needed_bytes=addition.bytes) as partial:
        addition.write(partial, {})
        job.progress("verify", 0, 1)
        if not _shares_base(ready, job):
            opened.release()
        parameters = job.source.inventory.parameters
        verdict, loaded = verify_output(
            opened.directory, job.source.inventory, changes.recorded, parameters, scales=partial
        )
        job.progress("verify", 1, 1)
        description = step.describe(plan, changes)
        before = opened.checkpoint.bytes
        sized = {"model_bytes_before": before, "model_bytes_after": before, "addition_bytes": addition.bytes}
        figures = {**sized, **description.figures}
        compared = _judge(ready, partial, loaded, job.progress)
        del loaded
        addition.write(partial, scores_of(figures, verdict, compared))
        about_to_name(job.workspace.directory.parent, partial)
    return StepResult(call.name, plan, figures, verdict, description), compared


def _shares_base(ready: _Ready, job: Job) -> bool:
    """Whether the base, if it is in memory, may stay there to be evaluated beside the reloaded output."""
    if ready.request.criteria is None or job.source is not ready.source:
        return False
    return 8 * ready.source.inventory.parameters < psutil.virtual_memory().available


def _judge(ready: _Ready, partial: Path, loaded: nn.Module | None, progress: Progress) -> Comparison | None:
    request = ready.request
    if request.criteria is None:
        return None
    written: Path | Opened = partial
    if request.inside:
        written = Opened(ready.source.checkpoint, trusted=True, scales=partial)
    return judge(
        ready.source.opened,
        written,
        request.target.name,
        request.criteria,
        request.options,
        prepared=ready.prepared,
        loaded=loaded,
        cache=request.cache,
        progress=progress,
    )
