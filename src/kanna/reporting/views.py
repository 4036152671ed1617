"""How results of a kind that a report does not know by itself are read and drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        gather: What a model directory holds of it in several files; None where nothing.
        key: Under which the data of such a model have it.
        step: Name of a step: a result is what the lineage of a model directory says of one.
        lean: The result without the texts of single rows.
        tables: All of them as CSV.
        compared: The comparisons with a base that are part of a result.
    """

    kind: str
    schema: type[BaseModel]
    draw: Callable[[Sequence[Result]], tuple[list[Verdict], list[Section]]]
    file: str = ""
    gather: Callable[[Path], dict[str, Any] | None] | None = None
    key: str = ""
    step: str = ""
    lean: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    tables: Callable[[Sequence[At]], str] | None = None
    compared: Callable[[At], Sequence[At]] = lambda _: ()

    @property
    def alone(self) -> bool:
        """Whether a result may be a file of its own."""
        return not self.step and self.gather is None
