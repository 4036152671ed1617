"""Which machine something was measured on: what one needs to compare figures, and no name of its owner."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

_PROCESSORS = Path("/proc/cpuinfo")


@cache
def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerators and system of this machine.

    Returns:
        processor: Its model, or its architecture where the system does not say.
        cores: Those that this process may use.
        memory_bytes: In all.
        accelerators: Their names; empty without any.
        system: Such as "Linux".
    """
    return {
        "processor": _processor(),
        "cores": _cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "accelerators": _accelerators(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return ["Apple GPU"] if torch.backends.mps.is_available() else []
