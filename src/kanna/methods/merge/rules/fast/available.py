"""Whether compiled loops are used: where numba is installed, and a merge is worth importing it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from kanna.errors import InputError

SWITCH = "KANNA_FAST"
# Values of inputs, of which each costs some ns less; importing numba and loops takes about 1.4 s of CPU.
_WORTH = 2.5e8


def used(values: int) -> bool:
    """Whether a merge of so many values of inputs uses them; no result depends on it.

    Raises:
        InputError: They are asked for, and numba is not installed.
    """
    asked = os.environ.get(SWITCH, "").lower()
    if asked not in ("", "on", "off"):
        raise InputError(f"{SWITCH} is {asked!r}", f"set it to on or off, or unset {SWITCH}")
    there = asked != "off" and find_spec("numba") is not None
    if asked == "on" and not there:
        raise InputError(f"{SWITCH} is on, and numba is not installed", "pip install 'kanna[fast]'")
    return there and (asked == "on" or values >= _WORTH)
