"""kanna compare"""

from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.terminal import asking
from kanna.terminal.options import Device, Force
from kanna.terminal.session import Session, verb


@verb
def compare(
    session: Session,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model it should be as good as.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to be judged.")],
    task: asking.Tasks = None,
    max_drop: asking.MaxDrop = None,
    tolerance: asking.ToleranceFile = None,
    guard: asking.Guards = None,
    confidence: asking.Confidence = None,
    examples: Annotated[int, typer.Option(min=0, help="Changed answers to show per task.")] = 10,
    distribution: Annotated[
        bool, typer.Option("--distribution/--no-distribution", help="Compare next-token distributions.")
    ] = True,
    blame: Annotated[
        bool, typer.Option("--blame", help="Which matrix, put back alone, repairs most.")
    ] = False,
    metric: asking.Metric = None,
    context: asking.Context = None,
    stride: asking.Stride = None,
    tokens: asking.TextTokens = None,
    limit: asking.Limit = None,
    chat: asking.Chat = False,
    new_tokens: asking.NewTokens = None,
    stop: asking.Stop = None,
    legacy_contains: asking.Legacy = False,
    refuse_long: asking.RefuseLong = False,
    costs: asking.Costs = None,
    shots: asking.Shots = None,
    include: asking.Include = None,
    batch_tokens: asking.Batch = 2048,
    dtype: asking.Dtype = "float32",
    device: Device = "cpu",
    fresh: asking.Fresh = False,
    out: asking.Results = None,
    force: Force = False,
) -> int:
    """Is MODEL still as right as BASE on the same rows? Exit code 0 if so, 3 if not or undecided.

    kanna compare BASE MODEL --task app.jsonl --max-drop 1%
    """
    from kanna.runs.compare import compare as judge
    from kanna.runs.results import check_free, write_result
    from kanna.tasks.options import EvalOptions

    criteria = asking.criteria_from(task, max_drop, tolerance, guard, confidence)
    if criteria is None:
        raise InputError("there is nothing to compare on", "give --task FILE, or --tolerance FILE.yaml")
    options = EvalOptions(
        metric=metric,
        context=context,
        stride=stride,
        tokens=tokens,
        limit=limit,
        chat=chat,
        new_tokens=new_tokens,
        stop=asking.stops(stop),
        legacy_contains=legacy_contains,
        refuse_long=refuse_long,
        costs=costs,
        shots=shots,
        include=include,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
    )
    check_free(out, "compare", model, force)
    with session.progress() as progress:
        result = judge(
            base,
            model,
            criteria,
            options,
            examples=examples,
            distribution=distribution,
            blame=blame,
            fresh=fresh,
            progress=progress,
        )
    write_result(out, "compare", model, result.to_dict())
    session.show(result.to_dict(), lambda console: asking.render_comparison(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED
