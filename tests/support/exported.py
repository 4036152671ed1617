"""A model multiplied out."""

from pathlib import Path

import kanna


def dense(model: Path, out: Path) -> Path:
    """Write `model` with every form multiplied out; the new directory."""
    return kanna.export_dense(model, out).out
