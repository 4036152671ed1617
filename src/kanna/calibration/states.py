"""Hidden states kept for later: in memory up to a limit, beyond it in files."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class States:
    """Tensors by (layer, batch).

    Args:
        limit: Bytes kept in memory; what comes later goes to files.
        directory: Where a temporary folder for them is made; the system's by default.
    """

    def __init__(self, limit: int = 2**30, directory: Path | None = None) -> None:
        self._left, self._directory = limit, directory
        self._held: dict[tuple[int, int], Tensor] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, layer: int, batch: int, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if size <= self._left:
            self._left -= size
            self._held[layer, batch] = states
            return
        save_file({"states": states.cpu().contiguous()}, self._path(layer, batch))

    def get(self, layer: int, batch: int, device: torch.device) -> Tensor:
        """What was put there.

        Raises:
            KeyError: Nothing was.
        """
        held = self._held.get((layer, batch))
        if held is not None:
            return held
        path = self._path(layer, batch)
        if not path.is_file():
            raise KeyError((layer, batch))
        return load_file(path)["states"].to(device)

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _path(self, layer: int, batch: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="kanna-states-", dir=self._directory)
        return Path(self._folder.name) / f"{layer}-{batch}.safetensors"
