"""Flags of the command line from the fields of a configuration, so that both say the same."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kanna.terminal.completing import completion_of
from kanna.terminal.literal import unescaped

Parameters = Iterable[inspect.Parameter]
_NUMBERS = (int, float)


@dataclass(frozen=True)
class Only:
    """Beside a configuration in Annotated: which of its fields are flags."""

    names: tuple[str, ...]


def expanded(parameters: Parameters) -> list[inspect.Parameter]:
    """The same, where each that is a configuration has given way to the flags of its fields.

    Fields of one name are one flag, whose value goes to all of their configurations.
    """
    flags: dict[str, inspect.Parameter] = {}
    for parameter in parameters:
        config, fields = _asked(parameter)
        for flag in [parameter] if config is None else [_flag(*field) for field in fields.items()]:
            flags.setdefault(flag.name, flag)
    return list(flags.values())


def gathered(parameters: Parameters, values: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """What the parameters are given when the command line gives `values` to the expanded ones.

    Raises:
        InputError: A value out of range, or two that exclude each other; the flag is named.
    """
    from kanna.runs.settings import parse

    given: dict[str, Any] = {}
    for parameter in parameters:
        config, fields = _asked(parameter)
        if config is None:
            given[parameter.name] = values[parameter.name]
            continue
        own = {name: _read(values[name], field) for name, field in fields.items()}
        flags = {name: field["flag"].partition("/")[0] for name, field in fields.items()}
        given[parameter.name] = parse(config, own, remedy, flags=flags)
    return given


def _asked(parameter: inspect.Parameter) -> tuple[type[BaseModel] | None, dict[str, dict[str, Any]]]:
    """The configuration that a parameter is, and what is said of each field that becomes a flag."""
    kind, *beside = get_args(parameter.annotation) or (parameter.annotation,)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None, {}
    only = next((note.names for note in beside if isinstance(note, Only)), None)
    fields = {name: _said(name, field) for name, field in kind.model_fields.items()}
    extra: Any = kind.model_config.get("json_schema_extra") or {}
    sugar = {"kind": str, "default": None}
    fields |= {name: {"flag": _named(name), **sugar, **more} for name, more in extra.get("sugar", {}).items()}
    return kind, {
        name: field
        for name, field in fields.items()
        if field["flag"] is not None and (only is None or name in only)
    }


def _said(name: str, field: FieldInfo) -> dict[str, Any]:
    """All about the flag of a field.

    The field's description is the help. Its `json_schema_extra` may hold `group` (the panel it is shown in),
    `metavar`, `flag` (its name where it is not that of the field; None for no flag), `also` (further names),
    `choices` (names that a shell completes, where the type does not tell them), `text` (one text, which
    validation reads) and `escapes` (\\n means the end of a line). The model's own may
    hold `sugar`: name -> the same for texts that validation turns into fields.
    """
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    kind = str if extra.get("text") else _kind(field.annotation)
    both = kind is bool and default is not False
    return {
        "flag": f"{_named(name)}/--no-{name.replace('_', '-')}" if both else _named(name),
        "kind": kind,
        "default": default,
        "description": field.description or "",
        "completion": completion_of(name, field.annotation, extra.get("choices")),
        **extra,
    }


def _named(field: str) -> str:
    return "--" + field.replace("_", "-")


def _flag(name: str, about: Mapping[str, Any]) -> inspect.Parameter:
    """A keyword parameter; what is not given is None. Numbers are read by the configuration, in its words."""
    number = about["kind"] in _NUMBERS
    option = typer.Option(
        about["flag"],
        *about.get("also", ()),
        metavar=about.get("metavar", "NUMBER" if number else None),
        help=_help(about["description"], about["default"]),
        rich_help_panel=about.get("group"),
        show_default=False,
        autocompletion=about.get("completion"),
    )
    kind: Any = Union[str if number else about["kind"], None]  # noqa: UP007
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(text: str, default: Any) -> str:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if default in (None, False, True, "") or not shown or shown in text:
        return text
    return f"{text.removesuffix('.')} ({shown})."


def _kind(annotation: Any) -> Any:
    """The type that the command line reads: a choice is a text, several texts are a list."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation


def _read(given: Any, about: Mapping[str, Any]) -> Any:
    """A number from its text; what is none stays as it is, for the configuration to say so."""
    if about.get("escapes"):
        if given is None or isinstance(given, str):
            return None if given is None else unescaped(given)
        return list(map(unescaped, given))
    if about["kind"] in _NUMBERS and isinstance(given, str):
        with suppress(ValueError):
            return about["kind"](given)
    return given
