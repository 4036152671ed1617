"""The program `kanna`."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from kanna.cli import (
    bench,
    cache,
    compare,
    demo,
    evaluate,
    explore,
    generate,
    inspect,
    report,
    run,
    task,
)
from kanna.cli.steps import lazy_verbs
from kanna.terminal.session import Common, Json, LogFile, Quiet, Threads, Verbose

_HELP = """Shave a pretrained language model down to what one application needs, and know what it cost.

Start with: kanna demo, or kanna inspect MODEL.

Exit codes: 0 done and passed, 1 our fault, 2 the input or the request is wrong, 3 done but the verdict is
fail, 130 interrupted. The result goes to stdout, progress and messages to stderr.
"""

app = typer.Typer(
    name="kanna",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in {
    "inspect": inspect.inspect,
    "eval": evaluate.evaluate,
    "compare": compare.compare,
    "bench": bench.bench,
    "report": report.report,
    "generate": generate.generate,
    "explore": explore.explore,
    "run": run.run,
    "cache": cache.cache,
    "demo": demo.demo,
}.items():
    app.command(name)(command)
app.add_typer(task.app)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    for package in ("kanna", "torch", "transformers"):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        print(f"{package} {found}")
    raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and leave.")
]


@app.callback()
def _before(
    context: typer.Context,
    show_version: Version = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
    threads: Threads = None,
) -> None:
    _, argv = context.obj
    context.obj = (Common(verbose, quiet, log_file, threads, as_json), argv)


def program() -> Any:
    """The whole command line: the verbs of this package, and those of the methods after `inspect`."""
    group: Any = typer.main.get_group(app)
    own = dict(group.commands)
    first = {"inspect": own.pop("inspect")}
    group.commands = first | {command.name: command for command in lazy_verbs()} | own
    return group


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on `argv` (the words after its name; those of the process by default).

    Returns:
        The exit code.
    """
    words = tuple(sys.argv[1:] if argv is None else argv)
    try:
        program()(args=list(words), prog_name="kanna", obj=(Common(), words))
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
