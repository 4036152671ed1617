"""The formats for programs that read whole numbers, a file each; one enters by a line here."""

from kanna.errors import InputError, suggestion
from kanna.methods.export.formats.target import Target
from kanna.runs.method import load

# What is said on the command line -> "module:TARGET".
TABLE: dict[str, str] = {
    "compressed-tensors": "kanna.methods.export.formats.compressed_tensors:TARGET",
    "gguf": "kanna.methods.export.formats.gguf:TARGET",
    "mlx": "kanna.methods.export.formats.mlx:TARGET",
    "gptq": "kanna.methods.export.formats.gptq:TARGET",
    "awq": "kanna.methods.export.formats.awq:TARGET",
}


def target(name: str) -> Target:
    """The format of that name.

    Raises:
        InputError: There is none; says which there are.
    """
    if name not in TABLE:
        raise InputError(
            f"there is no format {name!r}{suggestion(name, TABLE)}", f"known: {', '.join(TABLE)}"
        )
    found: Target = load(TABLE[name])
    return found
