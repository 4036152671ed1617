"""Files of work in progress: each appears whole or not at all, so a killed run can be continued."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kanna.checkpoint.tensor_file import is_whole, note_of, opened, save_whole, tensors_of
from kanna.errors import InputError

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
        save_whole(self.directory / name, tensors, note)

    def load(self, name: str, ending: str = "") -> dict[str, Tensor]:
        """The tensors of a file; only those whose names have that ending are read."""
        with self._opened(name) as file:
            return tensors_of(file, ending)

    def pick(self, name: str, keys: Sequence[str]) -> list[Tensor]:
        """The tensors of these names, in their order; nothing else is read."""
        with self._opened(name) as file:
            return [file.get_tensor(key) for key in keys]

    def note(self, name: str) -> Any:
        """The JSON note of a file."""
        with self._opened(name) as file:
            return note_of(file)

    def drop(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def shapes(self, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """(dtype, shape) by tensor name; the data are mapped, not read."""
        with self._opened(name) as file:
            return {key: (value.dtype, tuple(value.shape)) for key, value in tensors_of(file).items()}

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self.directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing", f"another run may have removed it: {_AGAIN}")
        with opened(path, _AGAIN) as file:
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
        save_whole(self.path, {f"{i:06d}": batch for i, batch in enumerate(batches)})

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
