"""Low-rank replacement from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kanna.heard import Listener, heard
from kanna.methods.lowrank import METHOD
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.plan import Plan
from kanna.runs.criteria import Criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import RunResult, carry_out
from kanna.runs.settings import parse
from kanna.tasks.options import EvalOptions


def parse_config(settings: dict[str, Any]) -> LowRankConfig:
    """Settings as given by the user; None values are taken as not given.

    Raises:
        InputError: A value out of range, or an unknown key; it is named.
    """
    return parse(LowRankConfig, settings, "see kanna lowrank --help")


def lowrank(
    model: str | Path,
    out: str | Path | None,
    config: LowRankConfig,
    *,
    calibration: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Listener = False,
) -> RunResult:
    """Replace weight matrices of a model by low-rank factors and write the smaller model.

    Args:
        model: Directory, or hub id in the local cache; dense or in low-rank forms already.
        out: Where the result goes; may be None for a dry run.
        calibration: `.jsonl` rows or plain text; needed by every method but `plain`.
        force: Replace `out`, and start over where an unfinished run is in the way.
        resume: Continue an unfinished run for `out`.
        dry_run: Only say what would be done.
        cache: Where statistics are kept between runs; kanna's cache directory by default.
        criteria: Tasks on which the result is compared with `model`, and what may be lost on them; the
            verdict is recorded in kanna.json.
        options: How to evaluate on them.
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
        calibration=calibration,
        criteria=criteria,
        options=options or EvalOptions(device=device),
        cache=cache,
        force=force,
        resume=resume,
        dry_run=dry_run,
    )
    return carry_out(request, announce, progress)  # type: ignore[arg-type]
