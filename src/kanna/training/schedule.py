"""Learning rates over a run."""

import math


def eighth(steps: int) -> int:
    """Steps between validations so that there are at most eight."""
    return max(1, math.ceil(steps / 8))


def warm_cosine(step: int, steps: int, warm_up: float, last: float) -> float:
    """Share of the rate at a step: a linear rise, then half a cosine down to `last`.

    Args:
        step: From 0 to steps - 1.
        steps: Of the whole run.
        warm_up: Share of the steps that the rise takes; at least one step.
        last: Share of the rate that is approached at the end.
    """
    warm = max(1, round(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2
