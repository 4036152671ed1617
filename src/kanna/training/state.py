"""What a run of training is told by: one file, whole or not at all, that holds only what is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kanna.checkpoint.tensor_file import note_of, opened, save_whole, tensors_of


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
        save_whole(self.path, tensors, note)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and note.

        Raises:
            InputError: The file was cut short, as a power failure leaves it.
        """
        with opened(self.path, "start over with --force") as file:
            return tensors_of(file), note_of(file)
