"""Names of devices, as far as they can be judged without torch."""

import re
from importlib.metadata import PackageNotFoundError, version

from kanna.errors import InputError, suggestion

_KNOWN = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu")
_CUDA = "cuda"
_BUILT_WITHOUT = "cpu"


def check_device_name(name: str) -> None:
    """Raise InputError for what is no name of a device, or for cuda where torch was built for CPUs only."""
    kind, _, index = name.partition(":")
    if kind not in _KNOWN or not re.fullmatch(r"\d*", index) or name.endswith(":"):
        raise InputError(
            f"device {name!r} cannot be used: it is none{suggestion(kind, _KNOWN)}",
            "choose --device cpu, cuda, a single one such as cuda:1, or mps",
        )
    if kind == _CUDA and (built := _torch_version()).endswith(f"+{_BUILT_WITHOUT}"):
        raise InputError(
            f"device {name!r} cannot be used: torch {built} is built for CPUs only",
            "choose --device cpu, or install a torch that is built for CUDA (see pytorch.org)",
        )


def _torch_version() -> str:
    """As the package says it; empty where it is not installed."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
