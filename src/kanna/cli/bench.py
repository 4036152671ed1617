"""kanna bench"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.measure.options import BenchOptions
from kanna.terminal.asking import Force, Model, Results
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.measure.results import BenchResult


@verb
def bench(
    session: Session,
    model: Model,
    options: BenchOptions,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="Measure it in turns with MODEL, and give ratios.")
    ] = None,
    price: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: per_hour, currency, utilisation, one_time.")
    ] = None,
    out: Results = None,
    force: Force = False,
) -> None:
    """Latency of prefill and decode, memory, size and energy of a model, beside another's."""
    check_paths([model] if against is None else [model, against])
    from kanna.measure.price import read_price

    paid = None if price is None else read_price(price)
    from kanna.measure.bench import bench as measure
    from kanna.runs.results import check_free, write_result

    check_free(out, "bench", model, force)
    with session.progress() as progress:
        result = measure(model, against=against, options=options, price=paid, progress=progress)
    write_result(out, "bench", model, result.to_dict(), force)
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "BenchResult") -> None:
    """What a page shows of it."""
    from kanna.reporting.blocks import At
    from kanna.reporting.console import draw
    from kanna.reporting.costs import bench as section

    draw(console, section(At(result.models[0].model, result.to_dict())))
