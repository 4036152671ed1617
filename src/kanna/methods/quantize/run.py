"""Quantising from Python."""

from collections.abc import Callable
from pathlib import Path

from kanna.heard import Listener, heard
from kanna.methods.quantize import METHOD
from kanna.methods.quantize.config import QuantizeConfig
from kanna.methods.quantize.plan import Plan
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import RunResult, carry_out
from kanna.tasks.options import EvalOptions


def quantize(
    model: str | Path,
    out: str | Path | None,
    config: QuantizeConfig,
    *,
    calibration: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Listener = False,
) -> RunResult:
    """Turn weights into whole numbers of a few bits, and write the smaller model.

    Args:
        model: Directory, or hub id in the local cache; dense, or low-rank factors of kanna.
        out: Where the result goes; may be None for a dry run.
        calibration: Text that the model may read, as a file of rows; without one gptq is not to be had.
        resume: Continue an unfinished run for `out`.
        criteria: Tasks on which the result is compared with `model`, and what may be lost on them.
        options: How to evaluate on them, and on which device to compute.
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
        calibration=None if calibration is None else Path(calibration),
        criteria=criteria,
        options=options or EvalOptions(),
        cache=cache,
        force=force,
        resume=resume,
        dry_run=dry_run,
    )
    return carry_out(request, announce, progress)  # type: ignore[arg-type]
