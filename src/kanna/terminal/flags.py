"""Flags of the command line from the fields of a configuration, so that both say the same."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


def flags(config: type[BaseModel]) -> list[inspect.Parameter]:
    """One keyword parameter for each field, with the option it becomes; what is not given is None.

    A field's description is the help. Its `json_schema_extra` may hold `group` (the panel it is shown in),
    `metavar`, `flag` (its name where it is not that of the field) and `also` (further names). The model's
    own may hold `sugar`: name -> the same for texts that validation turns into fields.
    """
    found = [_flag(name, field) for name, field in config.model_fields.items()]
    extra = config.model_config.get("json_schema_extra")
    sugar = extra.get("sugar", {}) if isinstance(extra, dict) else {}
    assert isinstance(sugar, dict)
    return found + [_parameter(name, str, dict(said), None) for name, said in sugar.items()]  # type: ignore[arg-type]


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    said = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return _parameter(name, field.annotation, {**said, "description": field.description or ""}, default)


def _parameter(name: str, annotation: Any, said: dict[str, Any], default: Any) -> inspect.Parameter:
    kind = _kind(annotation)
    flag = said.get("flag", "--" + name.replace("_", "-"))
    names = [flag, *said.get("also", ())]
    if kind is bool and _optional(annotation):
        names = [f"{flag}/--no-{flag.removeprefix('--')}"]
    option = typer.Option(
        *names,
        metavar=said.get("metavar"),
        help=_help(said["description"], default),
        rich_help_panel=said.get("group"),
        show_default=False,
    )
    plain = bool if kind is bool and not _optional(annotation) else Union[kind, None]  # noqa: UP007
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if plain is bool else None,
        annotation=Annotated[plain, option],
    )


def given(values: dict[str, Any], config: type[BaseModel]) -> dict[str, Any]:
    """What the command line said of a configuration's fields; a flag that was left out says nothing."""
    names = {parameter.name for parameter in flags(config)}
    said = {name: value for name, value in values.items() if name in names and value not in (None, False)}
    no = {name for name, value in values.items() if name in names and value is False}
    optional = {
        name for name in no if name in config.model_fields and _optional(config.model_fields[name].annotation)
    }
    return said | dict.fromkeys(optional, False)


def _help(text: str, default: Any) -> str:
    if default in (None, False, (), "") or str(default) in text:
        return text
    return f"{text.removesuffix('.')} ({default})."


def _optional(annotation: Any) -> bool:
    return NoneType in get_args(annotation)


def _kind(annotation: Any) -> Any:
    """The type that the command line reads: a choice is a text, several texts are a list."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation
