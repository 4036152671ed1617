"""What is asked of the runner: a model, steps, and what the result must still be able to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from kanna.checked import check_type
from kanna.checkpoint.applied import ACTIVE
from kanna.checkpoint.outputs import final_name
from kanna.errors import InputError
from kanna.runs.criteria import Criteria, Rule
from kanna.runs.method import Method
from kanna.runs.opened import Opened
from kanna.tasks.options import EvalOptions

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Origin:
    """How the settings of a step were found, where nobody wrote them by hand.

    Args:
        method: Name of the step in the lineage; None takes the method's.
        facts: What the lineage keeps beside the configuration.
        files: Further files of the directory: name -> JSON.
        data_hash: sha256 of the data they were chosen on.
    """

    method: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data_hash: str | None = None


@dataclass(frozen=True)
class Call:
    """One step with its settings."""

    method: Method
    config: BaseModel
    origin: Origin = field(default_factory=Origin)

    @property
    def name(self) -> str:
        """In the lineage."""
        return self.origin.method or self.method.name


@dataclass(frozen=True)
class Request:
    """A chain of steps from one model to one directory.

    Args:
        model: Directory, or hub id in the local cache.
        out: New directory; may be None for a dry run.
        calls: The steps, each of which takes what the one before it wrote.
        calibration: Text for steps that read some.
        criteria: Tasks on which the result is compared with `model`, and what may be lost on them.
        options: How to evaluate on them, and on which device to compute.
        cache: Where statistics and scores are kept; kanna's cache directory by default.
        force: Replace `out`, and start over where an unfinished run is in the way.
        resume: Continue an unfinished run for `out`.
        dry_run: Only say what would be done.
        opened: The model, where longer work has opened it: it is not read again.
        scales: Of the model: name of a set of scales, "base" for none; by default the one in use.
        inside: Whether `out` is a folder inside the model's directory, which one step makes, and of whose
            other files none is touched.
    """

    model: str | Path
    out: str | Path | None
    calls: tuple[Call, ...]
    calibration: str | Path | None = None
    criteria: Criteria | None = None
    options: EvalOptions = field(default_factory=EvalOptions)
    cache: Path | None = None
    force: bool = False
    resume: bool = False
    dry_run: bool = False
    opened: Opened | None = None
    scales: str | None = ACTIVE
    inside: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for an argument of another kind than it may be of."""
        for call in self.calls:
            config = call.method.load_config()
            check_type("config", call.config, config, f"write kanna.{config.__name__}(...)", required=True)
        check_type("out", self.out, (str, Path), "name a new directory")
        check_type("calibration", self.calibration, (str, Path), "name a file of text or rows")
        check_type("criteria", self.criteria, Criteria, 'write kanna.criteria_of("app.jsonl", "1%")')
        check_type("options", self.options, EvalOptions, "write kanna.EvalOptions(...)")

    @property
    def device(self) -> str:
        return self.options.device

    @property
    def target(self) -> Path:
        assert self.out is not None
        return final_name(self.out)


def asked(model: str | Path, out: str | Path | None, calls: tuple[Call, ...], **settings: Any) -> Request:
    """A request; without an output, a step that can goes inside the model's directory.

    Args:
        settings: Further fields of `Request`.

    Raises:
        InputError: It would go into the cache of the hub.
    """
    folder = calls[0].method.folder_inside(calls[0].config) if out is None and len(calls) == 1 else None
    if folder is None:
        return Request(model, out, calls, **settings)
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise InputError(f"{model} is no directory that could be added to", "give one, or a new one as --out")
    return Request(model, directory / folder, calls, inside=True, **settings)


def recipe_text(request: Request) -> str:
    """The recipe that asks for the same, paths as given; the output is named when it is run."""
    recipe: dict[str, Any] = {"model": str(request.model)}
    if request.calibration is not None:
        recipe["calibration"] = str(request.calibration)
    if request.device != "cpu":
        recipe["device"] = request.device
    if request.criteria is not None:
        recipe["tolerance"] = _tolerance(request.criteria)
        # the device stands in the recipe already
        if options := request.options.model_dump(mode="json", exclude_defaults=True, exclude={"device"}):
            recipe["evaluation"] = options
    elif read := _reading(request):
        recipe["evaluation"] = read
    recipe["steps"] = [
        {call.method.name: call.config.model_dump(mode="json", exclude_defaults=True) | _required(call)}
        for call in request.calls
    ]
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _reading(request: Request) -> dict[str, Any]:
    """How rows were read, where no task says it: those of the calibration text, and those that are learnt."""
    options = request.options
    chat = {"chat": True} if request.calibration is not None and options.chat else {}
    return chat if options.joiner is None else {**chat, "joiner": options.joiner}


def _required(call: Call) -> dict[str, Any]:
    """Settings that a recipe names even where they are none, as those of a search that chose nothing."""
    return call.config.model_dump(mode="json", include=set(call.method.required))


def _tolerance(criteria: Criteria) -> dict[str, Any]:
    rules = {
        guard: [_rule(rule) for rule in criteria.rules if rule.guard is guard] for guard in (False, True)
    }
    facts = {"confidence": criteria.confidence, "tasks": rules[False], "guards": rules[True]}
    facts |= {"accept_empty": True} if criteria.accept_empty else {}
    return {key: value for key, value in facts.items() if value != []}


def _rule(rule: Rule) -> dict[str, str]:
    allowed = {} if rule.tolerance is None else {"max_drop": rule.tolerance.text}
    return {"task": str(rule.task), **allowed}
