"""Metrics by name: kanna's own, and the user's function or command."""

import contextlib
import importlib.util
import json
import math
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.metrics.text_metrics import NAMES, REGEX, check_metric
from kanna.tasks.records import EMBEDDED, Record

COMMAND = "cmd:"
_MODULE = "kanna_user_metric"
# Of a record, to the user's metric.
_TOLD = ("row", "prompt", "expected", "predicted", "group", "cost")
# Long enough for a judge that asks another model about every row; a function is not interrupted, Ctrl-C is.
_WAIT_SECONDS = 3600


@dataclass(frozen=True)
class MetricInfo:
    """Args:
    higher_is_better: Direction.
    binary: Every example has 0 or 1.
    """

    higher_is_better: bool
    binary: bool


_OR_YOURS = f"; or your own: file.py:function, {COMMAND}COMMAND"
_RIGHT, _GRADED, _LOSS = MetricInfo(True, True), MetricInfo(True, False), MetricInfo(False, False)
_LOSSES = {"log_loss": _LOSS, "log_loss_per_token": _LOSS}
_GRADES = ("f1", "bleu", "rouge1", "rouge2", "rougeL")
METRICS: dict[str, dict[str, MetricInfo]] = {
    "choice": {"acc": _RIGHT, "acc_norm": _RIGHT, **_LOSSES},
    "answer": {
        "greedy": _RIGHT,
        **{f"top{k}": _RIGHT for k in (1, 5, 10)},
        **{name: _GRADED if name in _GRADES else _RIGHT for name in NAMES},
        **_LOSSES,
    },
    "text": {"perplexity": _LOSS, "bits_per_byte": _LOSS, "log_loss_per_token": _LOSS},
    "similarity": {"spearman": _GRADED},
    "retrieval": {"recall@1": _RIGHT},
}


def metric_info(metric: str, kind: str) -> MetricInfo:
    """What a metric of ours means for rows of a kind.

    Raises:
        InputError: It is unknown or not for that kind, its pattern is none, or its library is missing.
    """
    if kind == "answer" and metric.startswith(REGEX):
        check_metric(metric)
        return _RIGHT
    if metric not in METRICS[kind]:
        known = ", ".join(METRICS[kind]) + (f", {REGEX}PATTERN" if kind == "answer" else "")
        raise InputError(
            f"{metric!r} is no metric for rows of kind {kind}",
            f"known: {known}" + ("" if kind in EMBEDDED else _OR_YOURS),
        )
    check_metric(metric)
    return METRICS[kind][metric]


@dataclass(frozen=True)
class UserMetric:
    """A function of the user's, or a command.

    A function is called once with a list of dicts {row, prompt, expected, predicted, group, cost, ...the
    row's other keys} and returns one number each; what it prints goes to standard error. A command gets the
    same as JSON lines on standard input, writes one number a line, and ends within an hour.

    Args:
        name: As results name it.
        source: File and function, or the command.
        lower_is_better: Written as a leading minus: -file.py:function.
    """

    name: str
    source: str
    lower_is_better: bool

    def check(self) -> None:
        """Find the function, or the command, before any model is asked.

        Raises:
            InputError: There is none, or its file cannot be imported.
        """
        if not self.source.startswith(COMMAND):
            _imported(self.source)
            return
        program = _words(self.source.removeprefix(COMMAND))[0]
        if shutil.which(program) is None:
            raise InputError(f"the metric's command {program!r} is not found", "give the path of a program")

    def score(self, records: Sequence[Record], rows: Sequence[Row]) -> list[float]:
        """One finite number per record.

        Raises:
            InputError: It fails, or returns something else.
        """
        examples = [
            {**row.extra, **{name: getattr(record, name) for name in _TOLD}}
            for record, row in zip(records, rows, strict=True)
        ]
        if self.source.startswith(COMMAND):
            returned: Any = _command(self.source.removeprefix(COMMAND), examples)
        else:
            function = _imported(self.source)
            with _blamed(self.source):
                returned = function(examples)
                if returned is not None and not isinstance(returned, str | bytes | dict | float):
                    returned = list(returned)
        return _checked(self.name, returned, len(records))


def parse_user_metric(text: str) -> UserMetric | None:
    """The user's metric, or None for what must be one of ours.

    Raises:
        InputError: The file does not exist, or there is no command.
    """
    source = text.removeprefix("-")
    if source.startswith(COMMAND):
        words = _words(source.removeprefix(COMMAND))
        return UserMetric(f"{COMMAND}{Path(words[0]).name}", source, text.startswith("-"))
    path, colon, function = source.rpartition(":")
    if not colon or not path.endswith(".py") or source.startswith(REGEX):
        return None
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist", "give file.py:function")
    return UserMetric(f"{Path(path).name}:{function}", source, text.startswith("-"))


def _imported(source: str) -> Callable[[list[dict[str, Any]]], Any]:
    path, _, name = source.rpartition(":")
    with _blamed(source):
        specification = importlib.util.spec_from_file_location(_MODULE, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[_MODULE] = module  # dataclasses look their module up
        specification.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {name!r}", "give file.py:function")
    return function


@contextlib.contextmanager
def _blamed(source: str) -> Iterator[None]:
    """Whatever the user's code raises, even a wish to exit, is an InputError that names its line."""
    path, _, name = source.rpartition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)
        where = "" if line is None else f" ({Path(path).name}, line {line})"
        raise InputError(
            f"the metric {name} in {path} raised {type(error).__name__}: {error}{where}",
            "mend it; it gets a list of dicts with prompt, expected and predicted, and returns numbers",
        ) from error


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"the command {command!r} cannot be read: {error}", "mend its quotes") from None
    if not words:
        raise InputError("the metric names no command", f"write {COMMAND}COMMAND")
    return words


def _command(command: str, examples: list[dict[str, Any]]) -> list[str]:
    lines = "".join(json.dumps(example, ensure_ascii=False, default=str) + "\n" for example in examples)
    try:
        ran = subprocess.run(
            _words(command),
            input=lines,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"the metric's command {command!r} did not end within {_WAIT_SECONDS} s",
            "let it end when its standard input ends, or give it fewer rows (--limit)",
        ) from error
    except OSError as error:
        raise InputError(f"the metric's command did not run: {error}", "run it by hand once") from error
    if ran.returncode:
        ending = " ".join(ran.stderr.strip().splitlines()[-3:])
        raise InputError(f"the metric's command ended with code {ran.returncode}: {ending}", "mend it")
    return [line for line in ran.stdout.splitlines() if line.strip()]


def _checked(name: str, returned: Any, wanted: int) -> list[float]:
    remedy = f"return one finite number for each of the {wanted} examples, in their order"
    if not isinstance(returned, list):
        raise InputError(f"the metric {name} returned {returned!r}, which is no list of numbers", remedy)
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise InputError(f"the metric {name} returned something else than numbers: {error}", remedy) from None
    if len(values) != wanted:
        raise InputError(f"the metric {name} returned {len(values)} scores for {wanted} examples", remedy)
    wrong = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if wrong is not None:
        raise InputError(f"the metric {name} returned {values[wrong]} for row {wrong + 1}", remedy)
    return values
