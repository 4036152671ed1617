"""A plan on the console: of every document, from the first that is made to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kanna.heard import duration
from kanna.methods.merge.report import disagreement_table
from kanna.reporting.blocks import Table
from kanna.reporting.console import draw_block
from kanna.reporting.wording import size

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.merge.plan import MergePlan

_SHOWN = 12
_MODELS = ("model", "dtypes", ">files", ">vocabulary", ">bytes", "licence")
_TENSORS = ("method", ">tensors", ">values", "parameters", "such as")


def render_plan(console: Console, found: MergePlan) -> None:
    """Print what a recipe would do."""
    documents = [*found.before, found]
    for number, one in enumerate(documents, 1):
        if found.before:
            name = "the output" if one.recipe.name is None else one.recipe.name
            console.print(f"document {number} of {len(documents)}: {name}", highlight=False)
        _render_document(console, one)
    if found.before:
        console.print(f"all documents: {_taken(documents)}")
    console.print("nothing was written")


def _render_document(console: Console, found: MergePlan) -> None:
    told = found.to_dict()
    draw_block(console, Table("Models", _MODELS, _models(told)))
    groups = told["groups"]
    draw_block(console, Table("Tensors", _TENSORS, [_group(group) for group in groups[:_SHOWN]]))
    if len(groups) > _SHOWN:
        console.print(f"and {len(groups) - _SHOWN} further groups: see --json")
    if "tokenizer" in told:
        tokens = told["tokenizer"]
        console.print(f"tokens: {tokens['tokens']:,}, tokenizer of {tokens['of']}, {tokens['rows']:,} rows")
    if found.disagreement is not None:
        draw_block(console, disagreement_table(found.disagreement))
    for warning in found.warnings:
        console.print(f"note: {warning}")
    console.print(_taken([found]))


def _taken(plans: list[MergePlan]) -> str:
    """Bytes, memory and time of merges that are made one after the other."""
    read, written = (sum(getattr(one, key) for one in plans) for key in ("bytes_read", "bytes_written"))
    return (
        f"reads {size(read)}, writes {size(written)}, memory at most about "
        f"{size(max(one.memory for one in plans))}, about {duration(sum(one.seconds for one in plans))}"
    )


def _models(told: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{one['name']} (base)" if one["name"] == told["base"] else one["name"],
            " ".join(one["dtypes"]),
            str(one["files"]),
            "" if one["vocabulary"] is None else str(one["vocabulary"]),
            size(one["bytes"]),
            one["licence"] or "not said",
        ]
        for one in told["inputs"]
    ]


def _group(group: dict[str, Any]) -> list[str]:
    said = "; ".join(f"{name} {_values(value)}" for name, value in group.get("parameters", {}).items())
    return [group["method"], str(len(group["tensors"])), f"{group['values']:,}", said, group["tensors"][0]]


def _values(value: Any) -> str:
    return " ".join(f"{one:g}" for one in (value if isinstance(value, list) else [value]))
