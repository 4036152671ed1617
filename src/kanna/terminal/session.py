"""What every verb shares: the common flags, logging, exit codes, and where output goes."""

import functools
import inspect
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import wrapt

from kanna.errors import InputError, KannaError
from kanna.progress import Progress
from kanna.terminal.ending import Stops, exit_code, terminable, unmasked
from kanna.terminal.folded import PANEL
from kanna.terminal.progress import progress_on

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("kanna")

# Wide enough for every table of ours; a pipe has no width of its own.
_WIDTH_WITHOUT_TERMINAL = 160
# More than any machine has; a system that cannot start so many ends the process at once, without a word.
_THREADS = 1024


@dataclass(frozen=True)
class Common:
    """The flags that every verb has and the program before it; those after the verb add to the others."""

    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=PANEL)
    ] = False
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say more; -vv says all.", rich_help_panel=PANEL),
    ] = 0
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no warnings.", rich_help_panel=PANEL)
    ] = False
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Also write the full log there.", rich_help_panel=PANEL)
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, max=_THREADS, help="CPU threads to compute with.", rich_help_panel=PANEL
        ),
    ] = None

    def joined(self, other: "Common") -> "Common":
        return Common(
            self.json or other.json,
            self.verbose + other.verbose,
            self.quiet or other.quiet,
            other.log_file or self.log_file,
            other.threads or self.threads,
        )


COMMON = inspect.signature(Common).parameters


@dataclass(frozen=True)
class Session:
    """What a verb is given to speak with.

    Args:
        common: The common flags.
        argv: The words of the command line after `kanna`.
        stops: Whether the program was told to stop.
    """

    common: Common
    argv: tuple[str, ...]
    stops: Stops = field(default_factory=Stops)

    @property
    def verbose(self) -> bool:
        return self.common.verbose > 0

    def progress(self) -> AbstractContextManager[Progress]:
        """Report on stderr; see `progress_on`."""
        return progress_on(sys.stderr, self.common.quiet)

    @contextmanager
    def resumable(self, out: str | Path | None) -> Iterator[None]:
        """On Ctrl-C or SIGTERM print the command that continues the run for `out`, if it got so far."""
        try:
            with unmasked(self.stops):
                yield
        except KeyboardInterrupt as stopped:
            from kanna.runs.places import unfinished

            if out is None or not unfinished(out):
                raise
            words = [word for word in self.argv if word != "--resume"]
            command = shlex.join(["kanna", *words, "--resume"])
            print(f"\ninterrupted; continue with\n  {command}", file=sys.stderr)
            raise typer.Exit(exit_code(stopped)) from None

    def say(self, text: str) -> None:
        """A line on stderr, unless told to be quiet."""
        if not self.common.quiet:
            print(text, file=sys.stderr, flush=True)

    def show(self, result: dict[str, Any], render: Callable[["Console"], None]) -> None:
        """The result on stdout: as JSON, or as `render` draws it."""
        if self.common.json:
            import json

            letters = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
            print(json.dumps(result, indent=2, ensure_ascii=not letters))
            return
        from kanna.reporting.console import Paper

        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
        render(Paper(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False))


def verb(function: Callable[..., int | None], without: Collection[str] = ()) -> Callable[..., None]:
    """Decorator of a verb `(session, ...) -> exit code`: adds the common flags, maps errors to exit codes.

    Args:
        function: A parameter that is a configuration becomes flags, one per field.
        without: Parameters that do not become flags.
    """
    # With pydantic, which listing verbs does not need.
    from kanna.terminal.early import check_settings
    from kanna.terminal.flags import expanded, gathered

    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name not in ("session", *without)]

    @functools.wraps(function)
    def wrapper(*, invocation: typer.Context, **given: Any) -> None:
        after = Common(**{name: given[name] for name in COMMON})
        root = invocation.find_root()
        before, argv = root.obj if root.obj is not None else (Common(), ())
        session = Session(before.joined(after), argv)
        silent = nullcontext() if session.verbose else _silence()
        with (
            terminable(session.stops),
            _errors(session),
            _logging(session.common),
            _threads(session.common.threads),
            silent,
        ):
            asked = gathered(own, given, f"see {invocation.command_path} --help")
            check_settings(asked)
            code = function(session, **asked)
        if code:
            raise typer.Exit(code)

    invoked = inspect.Parameter("invocation", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    take(wrapper, (*expanded(own), invoked, *COMMON.values()))
    return wrapper


def take(function: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> None:
    """Let a function take keywords for typer to see."""
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}


@contextmanager
def _errors(session: Session) -> Iterator[None]:
    try:
        yield
    except KannaError as error:
        _fail(str(error), session, error.exit_code)
    except KeyboardInterrupt as stopped:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(exit_code(stopped)) from None
    except typer.Exit:
        raise
    except Exception as error:
        if session.stops.signal is not None:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            raise typer.Exit(exit_code(session.stops.error())) from None
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "" if session.verbose else "; run with -v for the traceback"
        log.debug("unexpected", exc_info=error)
        _fail(f"unexpected {text[:500]}{hint}", session, 1)


def _fail(message: str, session: Session, code: int) -> None:
    if session.verbose:
        traceback.print_exc()
    print(f"kanna: error: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


@contextmanager
def _logging(common: Common) -> Iterator[None]:
    level = logging.ERROR if common.quiet else logging.WARNING
    level = {0: level, 1: logging.INFO}.get(common.verbose, logging.DEBUG)
    handlers = [_handler(logging.StreamHandler(sys.stderr), level, "kanna: %(levelname)s: %(message)s")]
    if common.log_file is not None:
        file = _log_file(common.log_file)
        handlers.append(_handler(file, logging.DEBUG, "%(asctime)s %(levelname)s %(message)s"))
    before = log.level
    log.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _handler(handler: logging.Handler, level: int, form: str) -> logging.Handler:
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(form))
    return handler


def _log_file(path: Path) -> logging.Handler:
    try:
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the log file {path} cannot be written: {error.strerror}", "choose another --log-file"
        ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """As many as asked for, until the block ends."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _silence() -> Iterator[None]:
    """transformers reports errors alone and draws no bars, also where it is first imported in the block."""
    over = False
    with ExitStack() as undone:

        def imported(module: ModuleType) -> None:
            if not over:
                undone.enter_context(_silent(module))

        wrapt.when_imported("transformers.utils.logging")(imported)
        try:
            yield
        finally:
            over = True


@contextmanager
def _silent(module: ModuleType) -> Iterator[None]:
    """`transformers.utils.logging` silenced; what huggingface_hub draws goes with it."""
    hub = import_module("huggingface_hub.utils")
    level, bars = module.get_verbosity(), module.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    module.disable_progress_bar()
    module.set_verbosity_error()
    try:
        yield
    finally:
        module.set_verbosity(level)
        if bars:
            module.enable_progress_bar()
        if hub_bars != bars:
            (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
