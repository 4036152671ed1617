"""What a run of training is told by: one file, whole or not at all, that holds only what is trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kanna.errors import InputError


@dataclass(frozen=True)
class StateFile:
    """A state on disk: tensors, and a JSON note in the header of the same file, so that both are of one step.

    Args:
        path: Of the file.
    """

    path: Path

    def exists(self) -> bool:
        return self.path.is_file()

    def save(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Write it beside the old one, which it then replaces."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(contiguous, partial, metadata={"format": "pt", "note": json.dumps(note, sort_keys=True)})
        partial.replace(self.path)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and note.

        Raises:
            InputError: The file was cut short, as a power failure leaves it.
        """
        try:
            opened = safe_open(self.path, framework="pt")
        except SafetensorError as error:
            raise InputError(f"{self.path} is damaged: {error}", "start over with --force") from error
        with opened as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            note: dict[str, Any] = json.loads(file.metadata()["note"])
            return tensors, note

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
