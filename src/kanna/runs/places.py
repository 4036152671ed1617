"""Where kanna keeps files that are not results: unfinished work, and the cache between runs."""

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint.outputs import final_name

log = logging.getLogger("kanna")

RUN = "run.json"


@dataclass(frozen=True)
class CacheReport:
    """What the cache holds.

    Args:
        directory: Where it lies.
        bytes: By kind, such as `statistics` and `spectra`.
        cleared: Whether it was emptied after counting.
    """

    directory: Path
    bytes: dict[str, int]
    cleared: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "directory": str(self.directory),
            "bytes": self.bytes,
            "total_bytes": sum(self.bytes.values()),
            "cleared": self.cleared,
        }


# What kanna itself puts there; `clear` touches nothing else.
KINDS = ("statistics", "spectra", "evaluations", "compiled")


def cache_directory() -> Path:
    """$KANNA_CACHE, or the platform's cache directory for kanna."""
    import platformdirs

    chosen = os.environ.get("KANNA_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("kanna"))


def usable_cache(kind: str, given: Path | None = None) -> Path | None:
    """The cache's folder of a kind, made; None, with one warning, where nothing can be kept in it.

    Args:
        kind: Such as `statistics`.
        given: The cache; kanna's cache directory by default.
    """
    directory = (given or cache_directory()) / kind
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        warn_of_cache(given or cache_directory(), error)
        return None


def warn_of_cache(directory: Path, error: Exception) -> None:
    """Say once that a cache takes nothing; why stands in the log."""
    log.info("%s", error)
    warn_once(str(directory))


@functools.cache
def warn_once(directory: str) -> None:
    """One line for each directory."""
    log.warning(
        "nothing can be kept in the cache %s: going on without; $KANNA_CACHE names another", directory
    )


def cache_report(directory: Path | None = None) -> CacheReport:
    """Bytes in the cache, by kind."""
    root = directory or cache_directory()
    return CacheReport(root, {kind: _size(root / kind) for kind in KINDS})


def clear_cache(directory: Path | None = None) -> CacheReport:
    """Remove what kanna cached; says what was there."""
    report = cache_report(directory)
    for kind in KINDS:
        shutil.rmtree(report.directory / kind, ignore_errors=True)
    return CacheReport(report.directory, report.bytes, cleared=True)


def work_directory(out: Path) -> Path:
    """Where an unfinished run for `out` keeps its pieces."""
    return out.with_name(f"{out.name}.kanna-work")


def free_bytes(out: Path) -> int:
    """On the disk that `out` lies on or will lie on."""
    return shutil.disk_usage(_existing(out)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two paths lie, or will lie, on one disk."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _existing(path: Path) -> Path:
    """The path, or the first directory above it that is there."""
    place = path.expanduser().absolute()
    return next(parent for parent in (place, *place.parents) if parent.is_dir())


def unfinished(out: str | Path) -> bool:
    """Whether a run for `out` was interrupted and can be resumed."""
    return (work_directory(final_name(out)) / RUN).is_file()


def _size(directory: Path) -> int:
    """What cannot be seen, or goes while it is counted, counts as nothing."""
    total = 0
    with contextlib.suppress(OSError):
        for path in directory.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
    return total
