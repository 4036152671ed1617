"""Tuning from Python."""

from collections.abc import Callable
from pathlib import Path

from kanna.heard import Listener, heard
from kanna.methods.peqa import METHOD
from kanna.methods.peqa.config import TuneConfig
from kanna.methods.peqa.plan import Plan
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, asked
from kanna.runs.runner import RunResult, carry_out
from kanna.tasks.options import EvalOptions


def tune(
    model: str | Path,
    config: TuneConfig,
    *,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Listener = False,
) -> RunResult:
    """Teach a model of whole numbers a task by its scales alone.

    Args:
        model: Directory that `quantize` wrote. None of its files is touched: the set lies in
            `model/scales/NAME`, and is put to use by `kanna.scales.activate`.
        out: A new directory in place of that: the model with the set in use.
        resume: Continue an unfinished run.
        criteria: Tasks on which the result is compared with the model as it was quantised.
        options: How to evaluate on them, and on which device to train.
        announce: Called with the plan before long work begins.
        progress: True shows bars in a notebook, lines elsewhere; or a function of (stage, done, total).

    Returns:
        What was done: `out`, the steps with their figures, `status` (pass, fail, undecided, empty or not
        judged), and `comparison` with the base, where `criteria` were given.

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    progress = heard(progress)
    request = asked(
        model,
        out,
        (Call(METHOD, config),),
        criteria=criteria,
        options=options or EvalOptions(),
        cache=cache,
        force=force,
        resume=resume,
        dry_run=dry_run,
    )
    return carry_out(request, announce, progress)  # type: ignore[arg-type]
