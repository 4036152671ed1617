"""kanna generate"""

from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.asking import Device, Model
from kanna.terminal.completing import DTYPES, one_of
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.tasks.scorers.generation import GenerationResult

AS_STORED = "auto"


@verb
def generate(
    session: Session,
    model: Model,
    prompt: Annotated[str, typer.Option(help="A question for a chat model, else the beginning of a text.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show what this model writes beside it.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 60,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")] = False,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto (that of the files), float32, bfloat16, float16.",
            autocompletion=one_of((AS_STORED, *DTYPES)),
        ),
    ] = AS_STORED,
    device: Device = "cpu",
) -> None:
    """Continue a prompt greedily, side by side with another model if asked."""
    check_paths([model] if against is None else [model, against])
    if dtype not in (AS_STORED, *DTYPES):
        raise InputError(f"dtype {dtype!r} is unknown", f"choose {AS_STORED}, {', '.join(DTYPES)}")
    from kanna.tasks.scorers.generation import generate as write

    with session.progress() as progress:
        result = write(
            model,
            prompt,
            against=against,
            max_new_tokens=max_new_tokens,
            raw=raw,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "GenerationResult") -> None:
    if len(result.continuations) == 1:
        console.print(result.continuations[0].text, soft_wrap=True)
        return
    from kanna.reporting.console import table

    headings = [f"<{written.model}" for written in result.continuations]
    console.print(table(headings, [[written.text for written in result.continuations]]))
