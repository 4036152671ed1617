"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(texts: Mapping[Path, bytes]) -> None:
    """Write every file under a provisional name and sync it; then all take their names.

    A full disk leaves none of them half-written. Missing folders are made.
    """
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in texts}
    try:
        for path, data in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in texts:
            partial[path].replace(path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def write_json_whole(path: Path, data: object) -> None:
    """Write JSON with sorted keys under `path`, whole or not at all."""
    write_whole({path: json.dumps(data, indent=1, sort_keys=True).encode("utf-8")})
