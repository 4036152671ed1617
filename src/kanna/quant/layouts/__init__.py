"""How other formats lay codes, scales and zero-points out, a file each: tensors in, tensors out.

Each has `shapes(grid, m, n)`, what is stored of a matrix (m, n), and `tensors(codes)`; those that kanna reads
have `codes(tensors, ...)` too. Codes are moved, never computed: what is read back is what was written. None
knows files or models, and each takes whole groups only: see `kanna.methods.export.fit`.
"""

from collections.abc import Mapping

import torch

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
