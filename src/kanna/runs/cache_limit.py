"""How large kanna's cache may grow: at the end of a run what was used longest ago goes until it fits."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kanna.errors import InputError
from kanna.runs.places import KINDS, free_bytes

LIMIT = "KANNA_CACHE_LIMIT"
# Of the disk that is free and of what the cache holds already.
_SHARE = 0.1
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# A set of statistics is held by whoever uses it.
LOCK = "lock"
_GONE = ".gone"


@dataclass(frozen=True)
class CacheTrimmed:
    """What the end of a run left in the cache.

    Args:
        bytes: In all.
        limit: How many may stay.
        removed: Bytes that had to go.
    """

    bytes: int
    limit: int
    removed: int

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "limit_bytes": self.limit, "removed_bytes": self.removed}


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float


def cache_limit(directory: Path) -> int:
    """Bytes that the cache may hold: $KANNA_CACHE_LIMIT, or a tenth of the disk as if the cache were empty.

    Raises:
        InputError: The variable is no number of bytes.
    """
    given = os.environ.get(LIMIT, "").strip()
    if not given:
        held = sum(entry.bytes for entry in _entries(directory))
        return int(_SHARE * (free_bytes(directory / "entry") + held))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", given, re.IGNORECASE)
    if match is None:
        raise InputError(f"${LIMIT} is {given!r}, no number of bytes", "write it like 500MB, 20GB or 0")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def trim_cache(directory: Path) -> CacheTrimmed:
    """Remove what was used longest ago until the cache holds no more than its limit; what is in use stays."""
    limit = cache_limit(directory)
    entries = sorted(_entries(directory), key=lambda entry: entry.used)
    held, removed = sum(entry.bytes for entry in entries), 0
    # One that alone is too large goes before all that fits.
    for entry in sorted(entries, key=lambda entry: entry.bytes <= limit):
        if held - removed <= limit:
            break
        if _remove(entry.path):
            removed += entry.bytes
    return CacheTrimmed(held - removed, limit, removed)


def touch(path: Path) -> None:
    """Note that an entry has been used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _entries(directory: Path) -> Iterator[_Entry]:
    """Files, and folders of statistics, which go as a whole."""
    for kind in KINDS:
        with contextlib.suppress(OSError):
            for path in (directory / kind).iterdir():
                with contextlib.suppress(OSError):
                    files = [path, *(path.rglob("*") if path.is_dir() else ())]
                    stats = [file.stat() for file in files]
                    sizes = (s.st_size for file, s in zip(files, stats, strict=True) if file.is_file())
                    yield _Entry(path, sum(sizes), stats[0].st_mtime)


def _remove(path: Path) -> bool:
    """Whether it could be removed: nobody uses it."""
    if not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
        return not path.exists()
    # Out of the way while nobody else can begin to use it; whoever waits makes it anew.
    gone = path if path.name.endswith(_GONE) else path.with_name(f"{path.name}{_GONE}")
    try:
        if gone != path:
            with FileLock(path / LOCK, timeout=0):
                path.rename(gone)
    except (Timeout, OSError):
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()
