"""Basel from Python."""

from collections.abc import Callable
from pathlib import Path

from kanna.heard import Listener, heard
from kanna.methods.basel import METHOD
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.plan import Plan
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import RunResult, carry_out
from kanna.tasks.options import EvalOptions


def basel(
    model: str | Path,
    out: str | Path | None,
    config: BaselConfig,
    *,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Listener = False,
) -> RunResult:
    """Keep the bases of a model's matrices that a task needs, and write the smaller model.

    Args:
        model: Directory, or hub id in the local cache; dense.
        out: Where the result goes; may be None for a dry run.
        resume: Continue an unfinished run for `out`.
        criteria: Tasks on which the result is compared with `model`, and what may be lost on them.
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
    request = Request(
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
