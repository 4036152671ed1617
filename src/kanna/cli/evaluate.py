"""kanna eval"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.terminal import asking
from kanna.terminal.options import Device, Force, Model
from kanna.terminal.session import Session, verb


@verb
def evaluate(
    session: Session,
    model: Model,
    task: asking.Tasks = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Held-out text for perplexity: .txt, or .jsonl rows."),
    ] = None,
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
) -> None:
    """Score a model, compressed or not, on tasks and on held-out text.

    kanna eval MODEL --task facts.jsonl --task lm_eval:arc_easy --text heldout.txt
    """
    from kanna.runs.evaluations import evaluate as score
    from kanna.runs.results import check_free, write_result
    from kanna.tasks.options import EvalOptions

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
    files = [*(task or ()), *map(str, text or ())]
    check_free(out, "eval", model, force)
    with session.progress() as progress:
        result = score(
            model, files, options, texts=[str(one) for one in text or ()], fresh=fresh, progress=progress
        )
    write_result(out, "eval", model, result.to_dict())
    session.show(
        result.to_dict(records=out is None), lambda console: asking.render_evaluation(console, result)
    )
