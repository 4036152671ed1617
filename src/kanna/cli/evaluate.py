"""kanna eval"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.cli.options import Device, Model
from kanna.cli.session import Session, verb
from kanna.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.tasks.perplexity import TextResult


@verb
def evaluate(
    session: Session,
    model: Model,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Held-out text: .txt, or .jsonl rows.")
    ] = None,
    task: Annotated[Path | None, typer.Option(metavar="FILE", help="Not there yet.", hidden=True)] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Length of a window.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens by which windows advance; half the context.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Score only the first so many tokens.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows computed at a time.")] = 8,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="To compute in: float32, bfloat16, float16.")
    ] = "float32",
    device: Device = "cpu",
) -> None:
    """Perplexity of a model, compressed or not, on held-out text."""
    if task is not None:
        raise InputError("--task is not there yet; eval measures perplexity", "give --text FILE")
    if text is None:
        raise InputError("there is no text to evaluate on", "give --text FILE")
    from kanna.tasks.perplexity import evaluate_text

    with session.progress() as progress:
        result = evaluate_text(
            model,
            text,
            context=context,
            stride=stride,
            tokens=tokens,
            batch=batch,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "TextResult") -> None:
    from kanna.cli.tables import table

    found = result.result
    rows = [
        ["perplexity", f"{found.perplexity:.3f}"],
        ["bits per byte", f"{found.bits_per_byte:.4f}"],
        ["tokens scored", f"{found.scored:,} of {found.tokens:,}"],
        ["context", str(found.context)],
        ["stride", str(found.stride)],
    ]
    console.print(table((result.model, f">{result.text}"), rows))
