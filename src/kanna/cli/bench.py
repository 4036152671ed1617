"""kanna bench"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.options import Device, Force, Model
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.measure.results import BenchResult


@verb
def bench(
    session: Session,
    model: Model,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="Measure it in turns with MODEL, and give ratios.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="LIST", help="Prompts at once: 1,8.")] = "1",
    context: Annotated[str, typer.Option(metavar="LIST", help="Tokens of a prompt: 128,512.")] = "128",
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded per request.")] = 32,
    concurrency: Annotated[int, typer.Option(help="Requests at once, in threads.")] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds that do not count.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds that count.")] = 6,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32, bfloat16, float16.")] = "float32",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory, in processes of their own.")
    ] = True,
    price: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: per_hour, currency, utilisation, one_time.")
    ] = None,
    estimate_energy: Annotated[
        float | None, typer.Option(metavar="WATTS", min=0, help="Estimate energy from this power.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write the result as JSON there.")
    ] = None,
    force: Force = False,
) -> None:
    """Latency of prefill and decode, memory, size and energy of a model, beside another's."""
    from kanna.measure.bench import BenchOptions
    from kanna.measure.bench import bench as measure
    from kanna.measure.price import read_price
    from kanna.runs.results import check_free, write_result

    options = BenchOptions(
        batches=_numbers("--batch", batch),
        contexts=_numbers("--context", context),
        new_tokens=new_tokens,
        concurrency=concurrency,
        warmup=warmup,
        repeats=repeats,
        device=device,
        dtype=dtype,
        seed=seed,
        memory=memory,
        watts=estimate_energy,
    )
    paid = None if price is None else read_price(price)
    check_free(out, "bench", model, force)
    with session.progress() as progress:
        result = measure(model, against=against, options=options, price=paid, progress=progress)
    write_result(out, "bench", model, result.to_dict())
    session.show(result.to_dict(), lambda console: _render(console, result))


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text!r} is no list of whole numbers", "write 1,8") from None


def _render(console: "Console", result: "BenchResult") -> None:
    """What a page shows of it."""
    from kanna.reporting.blocks import At
    from kanna.reporting.console import draw
    from kanna.reporting.costs import bench as section

    draw(console, section(At(result.models[0].model, result.to_dict())))
