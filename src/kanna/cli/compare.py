"""kanna compare"""

from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.tasks.options import EvalOptions
from kanna.terminal import asking
from kanna.terminal.asking import Force
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb


@verb
def compare(
    session: Session,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model it should be as good as.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to be judged.")],
    judging: asking.Judging,
    options: EvalOptions,
    examples: Annotated[int, typer.Option(min=0, help="Changed answers to show per task.")] = 10,
    distribution: Annotated[
        bool, typer.Option("--distribution/--no-distribution", help="Compare next-token distributions.")
    ] = True,
    blame: Annotated[
        bool, typer.Option("--blame", help="Which matrix, put back alone, repairs most.")
    ] = False,
    fresh: asking.Fresh = False,
    out: asking.Results = None,
    force: Force = False,
) -> int:
    """Is MODEL still as right as BASE on the same rows? Exit code 0 if so, 3 if not or undecided.

    kanna compare BASE MODEL --task app.jsonl --max-drop 1%
    """
    check_paths([base, model], judging.task)
    criteria = judging.criteria()
    if criteria is None:
        raise InputError("there is nothing to compare on", "give --task FILE, or --tolerance FILE.yaml")
    from kanna.runs.compare import compare as judge
    from kanna.runs.results import check_free, write_result

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
    write_result(out, "compare", model, result.to_dict(), force)
    session.show(result.to_dict(), lambda console: asking.render_comparison(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED
