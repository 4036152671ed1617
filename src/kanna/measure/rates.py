"""What this machine does in a second: products, eigenvalues, files; found out in a few seconds."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_REPEATS = 3
# Rows, and inner and outer width of the product that is timed.
_PRODUCT = (1024, 1024, 2048)
_EIGEN = (256, 768)
_FILE = 64_000_000


@dataclass(frozen=True)
class Rates:
    """Of this machine, as loaded as it was, with the number of threads that torch has.

    Attributes:
        product: Floating-point operations a second of matrix products in float32.
        precise: The same in float64.
        eigen: (seconds of the eigenvectors of a float64 matrix of 1,000 rows, power of its size).
        file: Bytes a second written to a file, and read again.
    """

    product: float
    precise: float
    eigen: tuple[float, float]
    file: float

    def eigen_seconds(self, size: int) -> float:
        """Seconds of all eigenvectors of a float64 (size, size)."""
        second, power = self.eigen
        return float(second * (size / 1000) ** power)


def measured_rates(directory: Path, device: torch.device) -> Rates:
    """Time a few operations.

    Args:
        directory: On the disk that files of work will lie on; nothing stays in it.
        device: Where matrices are multiplied.
    """
    small, large = (_eigen(size, device) for size in _EIGEN)
    # Between quadratic and cubic whatever noise says: threads help large ones more.
    power = min(3.0, max(2.0, math.log(large / small) / math.log(_EIGEN[1] / _EIGEN[0])))
    return Rates(
        product=_product(torch.float32, device),
        precise=_product(torch.float64, device),
        eigen=(large * (1000 / _EIGEN[1]) ** power, power),
        file=_file(directory),
    )


def _product(dtype: torch.dtype, device: torch.device) -> float:
    rows, inner, outer = _PRODUCT
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, outer, dtype=dtype, device=device)
    return 2 * rows * inner * outer / _seconds(lambda: left @ right, device)


def _eigen(size: int, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64).to(device)
    symmetric = square + square.T
    return _seconds(lambda: torch.linalg.eigh(symmetric), device)


def _file(directory: Path) -> float:
    """Infinite where no file can be written: whoever needs one says so."""
    block = os.urandom(_FILE // 8) * 8
    existing = next(place for place in (directory, *directory.absolute().parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            began = time.perf_counter()
            file.write(block)
            file.flush()
            file.seek(0)
            file.read()
            return 2 * _FILE / (time.perf_counter() - began)
    except OSError:
        return math.inf


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a few runs, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[_REPEATS // 2]
