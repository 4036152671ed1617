"""The program `kanna`."""

import functools
import inspect
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from kanna.methods import methods
from kanna.runs.method import Method
from kanna.terminal.folded import VerbGroup
from kanna.terminal.lazy import LazyCommand, command_at
from kanna.terminal.literal import shown_literally
from kanna.terminal.session import COMMON, Common, take
from kanna.terminal.streams import ended, standard_streams

_HELP = """Shave a pretrained language model down to what one application needs, and know what it cost.

Start with: kanna demo, or kanna inspect MODEL.

Exit codes: 0 done, 1 our fault, 2 the input or the request is wrong, 3 done, but the verdict is fail,
undecided or empty, 130 interrupted, 141 nobody reads the result, 143 terminated. The result goes to
stdout, progress and messages to stderr.
"""

app = typer.Typer(
    cls=VerbGroup,
    name="kanna",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The verbs that belong to no method -> where they are, and what they do.
VERBS = {
    "inspect": (
        "kanna.cli.inspect:inspect",
        "List the matrices of a model: roles, shapes, bytes, break-even ranks; spectra if asked for.",
    ),
    "import": (
        "kanna.cli.imports:import_quantized",
        "Take over a model that others quantised (GPTQ, compressed-tensors), every code as it is.",
    ),
    "eval": (
        "kanna.cli.evaluate:evaluate",
        "Score a model, compressed or not, on tasks and on held-out text.",
    ),
    "compare": (
        "kanna.cli.compare:compare",
        "Is MODEL still as right as BASE on the same rows? Exit code 0 if so, 3 if not or undecided.",
    ),
    "bench": (
        "kanna.cli.bench:bench",
        "Latency of prefill and decode, memory, size and energy of a model, beside another's.",
    ),
    "report": (
        "kanna.cli.report:report",
        "One page of verdicts, tables and plots that works without a network, and the same as Markdown.",
    ),
    "generate": (
        "kanna.cli.generate:generate",
        "Continue a prompt greedily, side by side with another model if asked.",
    ),
    "explore": (
        "kanna.cli.explore:explore",
        "Size of the space of (layers, roles) designs, and the shares of parameters it can remove.",
    ),
    "run": (
        "kanna.cli.run:run",
        "Carry out a recipe: steps one after the other, each on what the one before it wrote.",
    ),
    "scales": (
        "kanna.cli.scales:app",
        "Sets of scales of a quantised model: list, use, roll back, compare, ship and check them.",
    ),
    "task": ("kanna.cli.task:app", "Make, check and split the data of a task."),
    "cache": (
        "kanna.cli.cache:cache",
        "Show or clear what kanna keeps between runs: input statistics, spectra, scores and compiled loops.",
    ),
    "demo": (
        "kanna.cli.demo:demo",
        "Run the main job on a small model that comes with kanna, and show what is lost at each ratio.",
    ),
}


def _version(wanted: bool) -> None:
    if not wanted:
        return
    for package in ("kanna", "torch", "transformers"):
        try:
            number = version(package)
        except PackageNotFoundError:
            number = "not installed"
        print(f"{package} {number}")
    raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and leave.")
]


def _before(context: typer.Context, show_version: Version = False, **given: Any) -> None:
    _, argv = context.obj
    context.obj = (Common(**given), argv)


take(_before, [*[*inspect.signature(_before).parameters.values()][:-1], *COMMON.values()])
app.callback()(_before)


def program() -> Any:
    """The whole command line: the verbs of this package, and those of the methods after `inspect`."""
    own = [
        LazyCommand(name, summary, functools.partial(command_at, name, place))
        for name, (place, summary) in VERBS.items()
    ]
    of_methods = [
        LazyCommand(method.words[0], method.group or method.summary, functools.partial(_of_method, method))
        for method in methods().values()
        if not method.hidden
    ]
    group: Any = typer.main.get_command(app)  # with completion for shells
    group.commands = {command.name: command for command in (own[0], *of_methods, *own[1:])}
    return shown_literally(group)


def _of_method(method: Method) -> Any:
    from kanna.cli.steps import real

    return real(method)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on `argv` (the words after its name; those of the process by default).

    Returns:
        The exit code.
    """
    words = tuple(sys.argv[1:] if argv is None else argv)
    with standard_streams() as output:
        code = _run(words)
        output.flush()
        return ended(output, code)


def _run(words: tuple[str, ...]) -> int:
    try:
        program()(args=list(words), prog_name="kanna", obj=(Common(), words))
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
