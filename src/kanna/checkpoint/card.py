"""README.md of an output: what it is made from, how to load it, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

CARD = "README.md"
# Front matter that holds for the output as it did for the source.
_COPIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_FENCE = "---"


@dataclass(frozen=True)
class Table:
    """A titled table of figures: column names, and rows of as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Args:
        title: Name of the output.
        base_model: Hub id or directory's base name of the source, or of several.
        summary: One or two sentences: what was done.
        tables: Figures.
        tags: Added to the tags that every output has.
        needs_kanna: Whether the layers are in forms that only kanna reads.
        relation: What the output is to its bases, where it is not a compressed one.
        licence: Front matter in the place of what the source's card says of its licence; None keeps that.
        source: Directory of the source, from whose card licence and language are copied.
    """

    title: str
    base_model: str | Sequence[str]
    summary: str
    tables: Sequence[Table] = ()
    tags: Sequence[str] = ()
    needs_kanna: bool = True
    relation: str | None = None
    licence: Mapping[str, str] | None = None
    source: Path | None = field(default=None, compare=False)

    @property
    def bases(self) -> tuple[str, ...]:
        return (self.base_model,) if isinstance(self.base_model, str) else tuple(self.base_model)


def render(card: Card) -> str:
    """The text of the card. Equal input gives equal text."""
    environment = Environment(
        loader=PackageLoader("kanna.checkpoint", "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    # A value that cannot break the table it stands in.
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    matter = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return environment.get_template("card.md.jinja").render(card=card, front_matter=matter)


def write(directory: Path, card: Card) -> None:
    """Write the card into the directory of the output."""
    (directory / CARD).write_text(render(card), encoding="utf-8", newline="\n")


def front_matter(directory: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none or it cannot be read.

    A card is prose for people: a broken one says nothing about the weights, so it is no error.
    """
    try:
        lines = (directory / CARD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0].strip() != _FENCE or _FENCE not in lines[1:]:
        return {}
    try:
        matter = yaml.safe_load("\n".join(lines[1 : lines.index(_FENCE, 1)]))
    except yaml.YAMLError:
        return {}
    return matter if isinstance(matter, dict) else {}


def _front_matter(card: Card) -> dict[str, Any]:
    matter: Mapping[str, Any] = {} if card.source is None else front_matter(card.source)
    copied = {key: matter[key] for key in _COPIED if key in matter}
    if card.licence is not None:
        copied = {**card.licence, **{key: copied[key] for key in copied if not key.startswith("license")}}
    if card.relation is None:
        tags = list(dict.fromkeys(["kanna", "compression", *card.tags]))
        return {"base_model": card.base_model, **copied, "library_name": "kanna", "tags": tags}
    related = {"base_model": list(card.bases), "base_model_relation": card.relation}
    tags = list(dict.fromkeys(["kanna", *card.tags]))
    return {**related, **copied, "library_name": "transformers", "tags": tags}
