"""kanna bench"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.options import Device, Force, Model
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.measure.bench import BenchResult, Setting


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
    from kanna.terminal.tables import size, table

    for one in result.models:
        rows = [_times(setting) for setting in one.settings]
        headings = (
            one.model,
            ">prefill p50",
            ">p95",
            ">p99",
            ">tokens/s",
            ">decode step p50",
            ">p95",
            ">p99",
        )
        console.print(table((*headings, ">spread", ">tokens/s", ">all streams"), rows))
        held = "" if one.memory is None else f", peak memory {size(one.memory.host_bytes)} (its own process)"
        console.print(f"on disk {size(one.bytes_on_disk)}{held}")
        for setting in one.settings:
            console.print(_computed(setting))
        if one.cost is not None:
            console.print(_cost(one.cost.per_million_tokens, one.cost.break_even_tokens, one.cost.currency))
    rounds = int(result.settings["repeats"])
    for ratio in result.ratios:
        console.print(
            f"batch {ratio.batch}, context {ratio.context}: prefill {_ratio(ratio.prefill, rounds)}, "
            f"decode {_ratio(ratio.decode, rounds)}"
        )
    for name, reason in result.meters.items():
        if reason:
            console.print(f"energy by {name}: not measured: {reason}")


def _times(one: "Setting") -> list[str]:
    streams = one.concurrent_tokens_per_second
    prefill, decode = one.prefill, one.decode
    return [
        f"batch {one.batch}, context {one.context}",
        *(_seconds(value) for value in (prefill.p50, prefill.p95, prefill.p99)),
        f"{one.prefill_tokens_per_second:,.0f}",
        *(_seconds(value) for value in (decode.p50, decode.p95, decode.p99)),
        f"{100 * decode.spread:.0f} %",
        f"{one.decode_tokens_per_second:,.1f}",
        "" if streams is None else f"{streams:,.1f}",
    ]


def _computed(one: "Setting") -> str:
    from kanna.terminal.tables import size

    measured = [
        f"{name} {joules:.4f} J/token" for name, joules in one.joules_per_token.items() if joules is not None
    ]
    estimate = one.estimated_joules_per_token
    guessed = [] if estimate is None else [f"estimated from your watts: {estimate:.4f} J/token"]
    computed = f"computed: {size(round(one.bytes_per_token))} read per token, {size(round(one.bandwidth))}/s"
    return f"batch {one.batch}, context {one.context}: " + "; ".join([*measured, computed, *guessed])


def _cost(per_million: float, break_even: float | None, currency: str) -> str:
    after = "" if break_even is None else f", paid back after {break_even / 1e6:,.1f} million tokens"
    return f"computed from your price: {per_million:.2f} {currency} per million decoded tokens{after}"


def _ratio(found: tuple[float, float, float], rounds: int) -> str:
    from kanna.measure.latency import FEWEST_PAIRS

    middle, low, high = found
    word = "faster" if low > 1 else "SLOWER" if high < 1 else "no clear difference"
    if rounds < FEWEST_PAIRS:
        word = f"fewer than {FEWEST_PAIRS} rounds say nothing at 95 %"
    return f"{middle:.2f}x ({low:.2f} to {high:.2f}: {word})"


def _seconds(value: float) -> str:
    return f"{1e3 * value:,.1f} ms"
