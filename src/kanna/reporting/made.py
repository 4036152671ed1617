"""Under the title of a page: of which models, when and on which machine its results were made."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from kanna.reporting.sources import Source
from kanna.reporting.wording import size

# A page of more says how many there are.
_MOST_NAMED = 8
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def made(sources: Sequence[Source]) -> list[str]:
    """A line each; what older results do not say is left out."""
    runs = [run for source in sources for run in _runs(source.data)]
    models = list(dict.fromkeys(name for source in sources for name in _models(source)))
    days = sorted({day for run in runs if (day := _day(run.get("finished")))})
    machines = list(dict.fromkeys(filter(None, (_machine(run.get("machine")) for run in runs))))
    lines = [f"Models: {_named(models)}"] if models else []
    if days:
        first, last = _written(days[0]), _written(days[-1])
        lines.append(f"Measured: {first}" if first == last else f"Measured: {first} to {last}")
    return [*lines, *(f"Machine: {one}" for one in machines)]


def _runs(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Where date and machine stand: in a result itself, or beside a model."""
    yield data
    if isinstance(data.get("run"), Mapping):
        yield data["run"]


def _models(source: Source) -> Iterator[str]:
    data = source.data
    if source.kind == "model":
        yield source.name
        yield data["lineage"]["base"]["name"]
    elif source.kind == "bench":
        yield from (model["model"] for model in data["models"])
    else:
        for side in (data.get("model"), data.get("base")):
            name = side.get("model") if isinstance(side, Mapping) else side
            if isinstance(name, str):
                yield name


def _named(models: Sequence[str]) -> str:
    more = len(models) - _MOST_NAMED
    return ", ".join(models[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _day(finished: Any) -> str:
    """Year, month and day of a time as kanna writes it; empty for anything else."""
    try:
        return datetime.fromisoformat(str(finished)).date().isoformat()
    except ValueError:
        return ""


def _written(day: str) -> str:
    """29 November 2026, in English whatever the locale."""
    date = datetime.fromisoformat(day)
    return f"{date.day} {_MONTHS[date.month - 1]} {date.year}"


def _machine(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return ""
    cores, memory = machine.get("cores"), machine.get("memory_bytes")
    accelerators = machine.get("accelerators") or []
    parts = [
        str(machine.get("processor") or ""),
        f"{cores} core{'' if cores == 1 else 's'}" if cores else "",
        f"{size(memory)} of memory" if isinstance(memory, int) else "",
        ", ".join(map(str, accelerators)) or "no accelerator",
        str(machine.get("system") or ""),
    ]
    return ", ".join(filter(None, parts))
