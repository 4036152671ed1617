"""What the user can say about an export."""

from typing import Literal

from kanna.configuration import Configuration, setting

_WHAT = "What is written"


class ExportConfig(Configuration):
    """Configuration of the step `export`."""

    format: Literal["dense"] = setting(
        ..., "What other tools shall read: dense.", {"group": _WHAT, "metavar": "dense"}
    )


class ExportOptions(Configuration):
    """What the verb takes: the format of the step, or one that programs for whole numbers read."""

    format: Literal["dense", "compressed-tensors", "gguf", "mlx", "gptq", "awq"] = setting(
        ...,
        "What other tools shall read: dense multiplies every form out; others take whole numbers as they "
        "are.",
        {"group": _WHAT, "metavar": "NAME"},
    )
    scales: str | None = setting(
        None,
        "The set of scales that is multiplied in, base for none; by default the one in use.",
        {"group": _WHAT, "metavar": "NAME"},
    )
    check: bool = setting(
        False,
        "Reload what was written with the loader it is for, and compare it with kanna's own model.",
        {"group": _WHAT},
    )
