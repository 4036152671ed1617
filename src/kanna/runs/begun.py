"""What a run was begun with, setting by setting, so that one that differs on resuming can be named."""

import json
from collections.abc import Mapping
from typing import Any

# What is no setting -> what people call it.
_CALLED = {
    "chat": "--chat",
    "joiner": "--joiner",
    "base": "the model",
    "data": "the text or task that the step reads",
    "calibration": "the calibration text",
    "judged": "the tasks or tolerances",
    "scales": "the set of scales in use",
}
_LONGEST, _MOST = 40, 4
# What a step reads depends on its settings, too: these are named where they are all.
_DRAWN = frozenset({"data", "calibration"})
_STEPS = "steps"
# Hashes say nothing to people.
_UNTOLD = frozenset({"base", "data", "calibration", "judged", "scales"})


def parts_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts of a fingerprint as name -> value in JSON; of a step each setting by itself.

    Args:
        facts: Under "steps" lists of name, settings, origin and digest of data; all else as it is.
    """
    parts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()
             if name not in ("steps", "first")}  # fmt: skip
    parts[_STEPS] = ", ".join(name for name, *_ in facts["steps"])
    for number, (_, settings, *origin) in enumerate(facts["steps"], 1):
        place = f"step {number}: " if len(facts["steps"]) > 1 else ""
        parts |= {f"{place}{key}": json.dumps(value, default=str) for key, value in settings.items()}
        parts[f"{place}where its settings came from"] = json.dumps(origin, sort_keys=True, default=str)
    return parts


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs, in words; empty where nothing of it does."""
    if then.get(_STEPS) != now.get(_STEPS):
        return f"the steps were {then.get(_STEPS)} and are {now.get(_STEPS)}"
    names = [name for name in dict.fromkeys((*now, *then)) if then.get(name) != now.get(name)]
    names = [name for name in names if name not in _DRAWN] or names
    told = [_told(name, then.get(name, "null"), now.get(name, "null")) for name in names[:_MOST]]
    return "; ".join(told) + (f"; and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _told(name: str, then: str, now: str) -> str:
    called = _CALLED.get(name, name)
    if name in _UNTOLD or max(len(then), len(now)) > _LONGEST:
        return f"{called} is another one"
    return f"{called} was {then} and is {now}"
