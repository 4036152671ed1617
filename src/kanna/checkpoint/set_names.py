"""How sets of scales are named, and where they lie in a model's directory; imports nothing heavy."""

import re

FOLDER = "scales"
# How the model is called as it was quantised, with no set.
BASE = "base"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_name(text: str) -> bool:
    """Whether a set can be called so, and its folder."""
    return text != BASE and _NAME.fullmatch(text) is not None
