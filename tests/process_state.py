"""What all code of a process shares, and what therefore no test and no call of kanna may leave changed."""

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.style  # noqa: F401  draws a number of `random` when it is imported

# Where the generators stand when a test or a fixture begins; no test seeds with it.
SEED = 20_071_031
LOGGERS = ("root", "kanna")
# Set by pytest for each phase, and by sklearn and torch.compile when something imports them.
FOREIGN = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}


def snapshot() -> dict[str, Any]:
    """What can be compared, by name. torch and numpy are asked only where somebody imported them."""
    found: dict[str, Any] = {
        "environment": {name: value for name, value in os.environ.items() if name not in FOREIGN},
        "working directory": os.getcwd(),  # noqa: PTH109
        "random": random.getstate(),
    }
    for name in LOGGERS:
        logger = logging.getLogger(name)
        found[f"handlers of logger {name}"] = list(logger.handlers)
        found[f"level of logger {name}"] = logger.level
    if numpy := sys.modules.get("numpy"):
        kind, keys, *rest = numpy.random.get_state()
        found["numpy.random"] = (kind, keys.tobytes(), *rest)
    if torch := _torch():
        found["torch threads"] = torch.get_num_threads()
        found["torch default dtype"] = torch.get_default_dtype()
        found["torch gradients"] = torch.is_grad_enabled()
        found["torch seed"] = torch.initial_seed()
        found["torch generator"] = torch.get_rng_state().numpy().tobytes()
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Name of what changed -> how; what one alone knows, by an import in between, is left out."""
    return {
        name: _said(value, after[name])
        for name, value in before.items()
        if name in after and after[name] != value
    }


def restore(before: dict[str, Any]) -> None:
    """Put everything back as the snapshot says."""
    for name in [name for name in os.environ if name not in before["environment"] and name not in FOREIGN]:
        del os.environ[name]
    os.environ.update(before["environment"])
    os.chdir(before["working directory"])
    random.setstate(before["random"])
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = before[f"handlers of logger {name}"]
        logger.setLevel(before[f"level of logger {name}"])
    if "numpy.random" in before:
        import numpy as np

        kind, keys, *rest = before["numpy.random"]
        np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))
    if "torch threads" in before:
        import torch

        if torch.get_num_threads() != before["torch threads"]:
            torch.set_num_threads(before["torch threads"])
        torch.set_default_dtype(before["torch default dtype"])
        torch.set_grad_enabled(before["torch gradients"])
        torch.set_rng_state(torch.frombuffer(bytearray(before["torch generator"]), dtype=torch.uint8))


def seed_all() -> None:
    """Every generator of the process at the same place, whatever ran before."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := _torch():
        torch.default_generator.manual_seed(SEED)


@contextmanager
def unchanged(may_draw: bool = False) -> Iterator[None]:
    """Begin with seeded generators; in the end all is put back as it was, and what had changed is an error.

    Args:
        may_draw: torch's generator may move on, as where layers are built, but not be seeded anew.

    Raises:
        AssertionError: Names all that changed.
    """
    whole = snapshot()
    seed_all()
    before = snapshot()
    try:
        yield
        changed = changes(before, snapshot())
        if may_draw:
            changed.pop("torch generator", None)
    finally:
        restore(whole)
    assert not changed, "the process is left changed" + "".join(f"\n  {n}: {h}" for n, h in changed.items())


@contextmanager
def given_back() -> Iterator[None]:
    """Around code of others, which may change what it likes: all is put back."""
    whole = snapshot()
    try:
        yield
    finally:
        restore(whole)


def _torch() -> Any:
    """torch where it is imported whole."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and hasattr(torch, "default_generator") else None


def _said(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names)
    if isinstance(before, bytes | tuple):
        return "moved on or seeded anew"
    return f"{before!r} -> {after!r}"
