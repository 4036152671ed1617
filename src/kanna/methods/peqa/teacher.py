"""Whose predictions are learnt: the model that was quantised, known by its hash, or a named one."""

from pathlib import Path

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.skeleton import skeleton
from kanna.runs.opened import Opened
from kanna.runs.source import Source
from kanna.tasks.tokens.padded import vocabulary_of

_GIVE = "name it with --teacher MODEL"


def find_teacher(source: Source, named: Path | None, first: Opened | None = None) -> Opened:
    """The teacher, opened.

    Args:
        named: By the user; None for the model that was quantised.
        first: The model that the chain of steps starts from, which may be that.

    Raises:
        InputError: It is not there, or has another vocabulary.
    """
    opened = _recorded(source, first) if named is None else Opened.open(named)
    own, other = vocabulary_of(source.skeleton), vocabulary_of(skeleton(opened.directory))
    if own != other:
        raise InputError(
            f"{opened.name} has a vocabulary of {other} tokens, and {source.name} one of {own}",
            "a teacher reads the same tokens: give another --teacher",
        )
    return opened


def _recorded(source: Source, first: Opened | None) -> Opened:
    """The first model of the lineage, where its name leads: beside this one, or in the cache of the hub."""
    known = source.lineage
    if first is not None and known is None and source.is_planned:
        return first
    if known is None:
        raise InputError(f"{source.name} does not say which model it was made of", _GIVE)
    if first is not None and first.base_hash == known.base.hash:
        return first
    seen = []
    for place in (source.directory.resolve().parent / Path(known.base.name).name, Path(known.base.name)):
        try:
            found = Checkpoint.open(place)
        except InputError:
            continue
        if lineage.base_hash(found) == known.base.hash:
            return Opened.open(place)
        seen.append(str(place))
    wrong = f"; {seen[0]} is another model" if seen else ""
    raise InputError(f"{known.base.name}, which {source.name} was made of, was not found{wrong}", _GIVE)
