"""What a model must keep: tasks, each with the drop allowed on it, and guards with drops of their own.

confidence: 0.95
tasks:
  - {task: app.jsonl, max_drop: 1%}
guards:
  - {task: general.txt, max_drop: 3%}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kanna.checked import check_type, read_yaml, validated
from kanna.errors import InputError
from kanna.result import replace
from kanna.tasks.data.task import HARNESS, names_of
from kanna.tasks.options import CONFIDENCE, Line, Tolerances
from kanna.tasks.verdict.tolerance import Tolerance, parse_tolerance

# A bootstrap would need millions of draws for more.
_HIGHEST_CONFIDENCE = 0.9999
_EXAMPLE = "{confidence: 0.95, tasks: [{task: FILE, max_drop: 1%}], guards: [{task: FILE, max_drop: 3%}]}"


@dataclass(frozen=True)
class Rule:
    """A task and what is allowed on it.

    Args:
        task: A file, or lm_eval:NAME.
        tolerance: None only measures.
        guard: It is not what the model is for, but must not suffer.
    """

    task: str
    tolerance: Tolerance | None
    guard: bool = False


@dataclass(frozen=True)
class Criteria:
    """All rules, and the confidence at which each must hold.

    Args:
        accept_empty: A pass counts although the base is not above a constant answer.
    """

    rules: tuple[Rule, ...]
    confidence: float = CONFIDENCE
    accept_empty: bool = False

    @property
    def files(self) -> list[str]:
        return [rule.task for rule in self.rules]

    def rule(self, name: str) -> Rule:
        """The rule of a task by the name that its score carries."""
        files = [rule for rule in self.rules if not rule.task.startswith(HARNESS)]
        harness = [rule for rule in self.rules if rule.task.startswith(HARNESS)]
        known = dict(zip(names_of([Path(rule.task) for rule in files]), files, strict=True))
        known |= {rule.task: rule for rule in harness}
        if name in known:
            return known[name]
        # A group of lm_eval tasks, or a file of one, comes back under the names of its members.
        if name.startswith(HARNESS) and len(harness) == 1:
            return harness[0]
        raise InputError(f"no tolerance is given for {name}", "name single lm_eval tasks, not groups")


def criteria_of(
    tasks: str | Path | Sequence[str | Path],
    max_drop: str | None = None,
    guards: str | Sequence[str] = (),
    confidence: float = CONFIDENCE,
    accept_empty: bool = False,
) -> Criteria:
    """What `kanna.compare` and the functions that write a model judge by, as given on the command line.

    Args:
        tasks: A file or `lm_eval:NAME`, or several.
        max_drop: Allowed on each: "1%" of the base's score, or "1pt"; None only measures.
        guards: A task with a drop of its own, such as "general.txt=3%", or several.
        confidence: Of the verdict, one-sided.
        accept_empty: Let it pass where the base does no better than one constant answer.

    Returns:
        The criteria.

    Raises:
        InputError: No task, something that is no name of a file, a confidence outside (0.5, 0.9999], a
            tolerance or guard that cannot be read.
    """
    check_type(
        "tasks", tasks, (str, Path, list, tuple), 'such as criteria_of("app.jsonl", "1%")', required=True
    )
    several = [tasks] if isinstance(tasks, str | Path) else tasks
    lines = [
        {"task": str(task) if isinstance(task, Path) else task, "max_drop": max_drop} for task in several
    ]
    data = {"confidence": confidence, "tasks": lines, "accept_empty": accept_empty}
    read = validated(Tolerances, data, "criteria", 'such as criteria_of("app.jsonl", "1%")')
    return criteria_from(
        replace(read, guards=tuple(map(_guard, [guards] if isinstance(guards, str) else guards)))
    )


def read_criteria(path: str | Path) -> Criteria:
    """Criteria in a YAML file. Relative paths in it are taken from where the program runs.

    Returns:
        The criteria.

    Raises:
        InputError: Missing, not YAML, unknown or missing keys, or a tolerance that cannot be read.
    """
    path = Path(path).expanduser()
    data = read_yaml(path, _EXAMPLE)
    read = validated(Tolerances, data, path, f"it looks like {_EXAMPLE}")
    for kind, lines in (("tasks", read.tasks), ("guards", read.guards)):
        for number, line in enumerate(lines):
            if line.max_drop is None:
                raise InputError(f"{path}: {kind}.{number}.max_drop is missing", f"it looks like {_EXAMPLE}")
    return criteria_from(read)


def criteria_from(tolerances: Tolerances) -> Criteria:
    """The rules of a tolerance file, or of the same in a recipe.

    Raises:
        InputError: A tolerance that cannot be read, no task, or a confidence outside (0.5, 0.9999].
    """
    lines = [(line, False) for line in tolerances.tasks] + [(line, True) for line in tolerances.guards]
    rules = tuple(
        Rule(line.task, None if line.max_drop is None else parse_tolerance(str(line.max_drop)), guard)
        for line, guard in lines
    )
    if not rules:
        raise InputError("there is nothing to compare on", "give --task FILE, or --tolerance FILE.yaml")
    if not 0.5 < tolerances.confidence <= _HIGHEST_CONFIDENCE:
        raise InputError(
            f"confidence {tolerances.confidence} must lie between 0.5 and {_HIGHEST_CONFIDENCE}",
            "0.95 is usual",
        )
    return Criteria(rules, tolerances.confidence, tolerances.accept_empty)


def check_harness(criteria: Criteria, include: Path | None) -> None:
    """Raise InputError for a task of lm_eval of which no verdict can be made; reads their data."""
    judged = [rule.task for rule in criteria.rules if rule.tolerance and rule.task.startswith(HARNESS)]
    if judged:
        from kanna.tasks.scorers.harness import check_judged

        check_judged([task.removeprefix(HARNESS) for task in judged], include)


def _guard(text: str) -> Line:
    task, equals, drop = text.rpartition("=")
    if not equals:
        raise InputError(f"guard {text!r} has no tolerance", "write --guard FILE=3%")
    return Line(task=task, max_drop=drop)
