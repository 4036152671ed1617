"""Files of tensors with a JSON note, of work in progress: whole or not at all."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kanna.errors import InputError

log = logging.getLogger("kanna")


def save_whole(path: Path, tensors: Mapping[str, Tensor], note: object = None) -> None:
    """Write tensors (any shapes and dtypes) and a note whole or not at all, as far as a kill goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(contiguous, partial, metadata={"format": "pt", "note": json.dumps(note, sort_keys=True)})
    partial.replace(path)


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """A file of tensors, mapped.

    Raises:
        InputError: It was cut short, as a power failure leaves it.
    """
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}", remedy) from error
    with file:
        yield file


def tensors_of(file: Any, ending: str = "") -> dict[str, Tensor]:
    """All tensors of an opened file whose names have that ending."""
    return {key: file.get_tensor(key) for key in file.keys() if key.endswith(ending)}  # noqa: SIM118


def note_of(file: Any) -> Any:
    """The note of an opened file."""
    return json.loads(file.metadata()["note"])


def is_whole(path: Path) -> bool:
    """Whether a file of tensors is there and as long as its header says.

    A power failure cuts files short. Such a one is removed.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        log.warning("%s is damaged: what it held is computed again", path)
        path.unlink(missing_ok=True)
        return False
