"""How results of a kind that a report does not know by itself are read and drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from kanna.reporting.blocks import At, Section, Verdict


@dataclass(frozen=True)
class Result:
    """A result on the page.

    Args:
        at: Where it is.
        lineage: Of the model directory that holds it; None for a file of its own.
    """

    at: At
    lineage: At | None = None


@dataclass(frozen=True)
class View:
    """Results of one kind.

    Args:
        kind: What they call themselves.
        schema: What they must hold.
        draw: Verdicts and sections of all of them, in the order of the page.
        file: Under which a model directory holds one; empty where none does.
        key: Under which the data of such a model have it.
        lean: The result without the texts of single rows.
        tables: All of them as CSV.
    """

    kind: str
    schema: type[BaseModel]
    draw: Callable[[Sequence[Result]], tuple[list[Verdict], list[Section]]]
    file: str = ""
    key: str = ""
    lean: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    tables: Callable[[Sequence[At]], str] | None = None
