"""Files of work in progress: each appears whole or not at all, so a killed run can be continued."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kanna.errors import InputError


@dataclass(frozen=True)
class Workspace:
    """A directory of finished pieces.

    Args:
        directory: Made on first use.
    """

    directory: Path

    def has(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def save(self, name: str, tensors: Mapping[str, Tensor], note: object = None) -> None:
        """Write tensors (and a JSON note) under `name`, whole or not at all."""
        _save(self.directory / name, tensors, json.dumps(note, sort_keys=True))

    def load(self, name: str, ending: str = "") -> dict[str, Tensor]:
        """The tensors of a file; only those whose names have that ending are read."""
        with safe_open(self._path(name), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.endswith(ending)}  # noqa: SIM118

    def pick(self, name: str, keys: Sequence[str]) -> list[Tensor]:
        """The tensors of these names, in their order; nothing else is read."""
        with safe_open(self._path(name), framework="pt") as file:
            return [file.get_tensor(key) for key in keys]

    def note(self, name: str) -> Any:
        """The JSON note of a file."""
        with safe_open(self._path(name), framework="pt") as file:
            return json.loads(file.metadata()["note"])

    def drop(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def shapes(self, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """(dtype, shape) by tensor name; the data are mapped, not read."""
        with safe_open(self._path(name), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}

    def _path(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing", "another run may have removed it: start again with --force"
            )
        return path


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
        return self.path.is_file()

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


def _save(path: Path, tensors: Mapping[str, Tensor], note: str = "null") -> None:
    """Write tensors whole or not at all, as far as a kill of this process goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(contiguous, partial, metadata={"format": "pt", "note": note})
    partial.replace(path)
