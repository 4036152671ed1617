"""Files of work in progress: each appears whole or not at all, so a killed run can be continued."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kanna.errors import InputError

log = logging.getLogger("kanna")
_AGAIN = "start again with --force; files of kanna's cache go with kanna cache clear"


@dataclass(frozen=True)
class Workspace:
    """A directory of finished pieces.

    Args:
        directory: Made on first use.
    """

    directory: Path

    def has(self, name: str) -> bool:
        """Whether a piece is there, whole."""
        return is_whole(self.directory / name)

    def save(self, name: str, tensors: Mapping[str, Tensor], note: object = None) -> None:
        """Write tensors (and a JSON note) under `name`, whole or not at all."""
        _save(self.directory / name, tensors, json.dumps(note, sort_keys=True))

    def load(self, name: str, ending: str = "") -> dict[str, Tensor]:
        """The tensors of a file; only those whose names have that ending are read."""
        with self._opened(name) as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.endswith(ending)}  # noqa: SIM118

    def pick(self, name: str, keys: Sequence[str]) -> list[Tensor]:
        """The tensors of these names, in their order; nothing else is read."""
        with self._opened(name) as file:
            return [file.get_tensor(key) for key in keys]

    def note(self, name: str) -> Any:
        """The JSON note of a file."""
        with self._opened(name) as file:
            return json.loads(file.metadata()["note"])

    def drop(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def shapes(self, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """(dtype, shape) by tensor name; the data are mapped, not read."""
        with self._opened(name) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self.directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing", f"another run may have removed it: {_AGAIN}")
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise InputError(f"{path} is damaged: {error}", _AGAIN) from error
        with file:
            yield file


class Stream:
    """The hidden states between two blocks, batch by batch, in a file.

    The file is mapped: states that fit in the page cache are never read back from disk.

    Args:
        path: `save` writes it whole; `batches` maps it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, batches: Sequence[Tensor]) -> None:
        _save(self.path, {f"{i:06d}": batch for i, batch in enumerate(batches)})

    def __len__(self) -> int:
        with safe_open(self.path, framework="pt") as file:
            return len(file.keys())

    def batch(self, index: int, device: torch.device | str) -> Tensor:
        """Hidden states (b, length, width) of one batch."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"{index:06d}").to(device)

    def exists(self) -> bool:
        """Whether it is there, whole."""
        return is_whole(self.path)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


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


def _save(path: Path, tensors: Mapping[str, Tensor], note: str = "null") -> None:
    """Write tensors whole or not at all, as far as a kill of this process goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(contiguous, partial, metadata={"format": "pt", "note": note})
    partial.replace(path)
