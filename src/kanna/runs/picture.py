"""Whether a picture can be written somewhere, before anything heavy is imported."""

import os
from pathlib import Path

from kanna.errors import InputError

_FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: Path, force: bool = False) -> None:
    """Raise InputError for a file that no picture can be written to, or that is there already.

    Args:
        force: It may be replaced.
    """
    if path.suffix not in _FORMATS:
        raise InputError(f"{path.name} is no picture file", f"choose one that ends in {', '.join(_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.absolute().parent} is no directory", "make it first")
    if path.is_dir():
        raise InputError(f"{path} is a directory", "choose another --plot")
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already", "choose another --plot, or replace it with --force")
