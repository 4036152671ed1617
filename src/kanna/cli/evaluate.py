"""kanna eval"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.tasks.options import EvalOptions
from kanna.terminal import asking
from kanna.terminal.asking import Force, Model
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb


@verb
def evaluate(
    session: Session,
    model: Model,
    tasks: asking.Tasks,
    options: EvalOptions,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Held-out text for perplexity: .txt, or .jsonl rows."),
    ] = None,
    fresh: asking.Fresh = False,
    out: asking.Results = None,
    force: Force = False,
) -> None:
    """Score a model, compressed or not, on tasks and on held-out text.

    kanna eval MODEL --task facts.jsonl --task lm_eval:arc_easy --text heldout.txt
    """
    check_paths([model], [*tasks.task, *(text or ())])
    options.check_metric(has_task=bool(tasks.task))
    if not tasks.task and not text:
        raise InputError(
            "there is nothing to evaluate on", "give --task FILE, --task lm_eval:NAME or --text FILE"
        )
    from kanna.runs.evaluations import evaluate as score
    from kanna.runs.results import check_free, write_result

    texts = [str(path) for path in text or ()]
    check_free(out, "eval", model, force)
    with session.progress() as progress:
        result = score(model, [*tasks.task, *texts], options, texts=texts, fresh=fresh, progress=progress)
    write_result(out, "eval", model, result.to_dict(), force)
    session.show(
        result.to_dict(records=out is None), lambda console: asking.render_evaluation(console, result)
    )
