"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(texts: Mapping[Path, bytes], replace: bool = True) -> None:
    """Write every file under a provisional name and sync it; then all take their names.

    A full disk leaves none of them half-written. Missing folders are made.

    Args:
        replace: Whether a file may be replaced that has one of the names, also one that came meanwhile.

    Raises:
        FileExistsError: One has, and may not be replaced; none of the others is left.
    """
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in texts}
    try:
        for path, data in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if replace:
            for path in texts:
                partial[path].replace(path)
        else:
            _name_new(partial)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def write_json_whole(path: Path, data: object, replace: bool = True) -> None:
    """Write JSON with sorted keys under `path`, whole or not at all."""
    write_whole({path: json.dumps(data, indent=1, sort_keys=True).encode("utf-8")}, replace)


def _name_new(partial: Mapping[Path, Path]) -> None:
    """Give all of them their names, or none."""
    named: list[Path] = []
    try:
        for path, written in partial.items():
            _link(written, path)
            named.append(path)
    except FileExistsError:
        for path in named:
            path.unlink()
        raise


def _link(written: Path, path: Path) -> None:
    """A second name for a file, which no file has yet."""
    try:
        path.hardlink_to(written)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists already") from None
        written.rename(path)
