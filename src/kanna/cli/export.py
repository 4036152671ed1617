"""kanna export"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal import asking
from kanna.terminal.options import Device, Directory, Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb
def export(
    session: Session,
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    form: Annotated[str, typer.Option("--format", metavar="dense", help="What other tools shall read.")],
    task: asking.Tasks = None,
    max_drop: asking.MaxDrop = None,
    tolerance: asking.ToleranceFile = None,
    guard: asking.Guards = None,
    confidence: asking.Confidence = None,
    metric: asking.Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    device: Device = "cpu",
    force: Force = False,
) -> int:
    """Write a compressed model for tools that do not know kanna; dense multiplies every factor out.

    With tasks, what was written is compared with the model it came from.
    """
    if form != "dense":
        raise InputError(f"there is no format {form!r}", "choose --format dense")
    from kanna.recipe.export import export_dense
    from kanna.tasks.evaluate import EvalOptions

    criteria = asking.criteria_from(task, max_drop, tolerance, guard, confidence)
    options = EvalOptions(metric=metric, context=context, limit=limit, device=device)
    with session.progress() as progress:
        result = export_dense(
            directory, out, force=force, criteria=criteria, options=options, progress=progress
        )

    def render(console: "Console") -> None:
        if result.comparison is not None:
            asking.render_comparison(console, result.comparison)
        console.print(f"written: {result.out} ({result.bytes:,} bytes of weights)")

    session.show(result.to_dict(), render)
    return 0 if result.passed else asking.VERDICT_FAILED
