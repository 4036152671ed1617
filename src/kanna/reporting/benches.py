"""Which bench is of which models of a comparison, and which of several counts."""

from collections.abc import Sequence
from datetime import UTC, datetime

from kanna.reporting.blocks import At

# Name and bytes: what tells two models apart whose directories are called alike.
Key = tuple[str, int]


def keys(bench: At) -> list[frozenset[Key]]:
    """Of each model of a bench, what a comparison may know it by.

    A bench puts the parent folder before the names of two directories that are called alike, a comparison
    does not. Without it they are known only where their bytes differ.
    """
    models = [(model["model"], model["bytes_on_disk"]) for model in bench.data["models"]]
    short = [(name.rpartition("/")[2], size) for name, size in models]
    alike = len({name for name, _ in short}) < len(short) and len(set(short)) == len(short)
    plain = short if alike else models
    return [frozenset(both) for both in zip(models, plain, strict=True)]


def in_time(benches: Sequence[At]) -> list[At]:
    """By when they were finished, the latest last; those that do not say come first, as they are."""
    return sorted(benches, key=_finished)


def _finished(bench: At) -> datetime:
    never = datetime.min.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(str(bench.data.get("finished")))
    except ValueError:
        return never
    return found if found.tzinfo else found.replace(tzinfo=UTC)
