"""What is told of an adapter that was written, made of a model or of several adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter, and what it left out.

    Args:
        out: Its directory.
        ranks: Layer -> rank.
        lost: Layer -> share of the squared difference that is left out.
        saved: Modules that are saved whole.
        bytes: Of the weights.
        method: By which adapters were merged; None for one that was extracted.
        warnings: What a user should know.
        run: Times and memory, also in `OUT.run.json`.
    """

    out: Path
    ranks: Mapping[str, int]
    lost: Mapping[str, float]
    saved: tuple[str, ...]
    bytes: int
    method: str | None = None
    warnings: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def lost_share(self) -> float:
        """Of the worst layer."""
        return max(self.lost.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        merged = {} if self.method is None else {"method": self.method, "warnings": list(self.warnings)}
        return {
            "schema_version": 1,
            "kind": "adapter",
            "out": str(self.out),
            **merged,
            "layers": [
                {"module": one, "rank": self.ranks[one], "lost": self.lost[one]} for one in self.ranks
            ],
            "saved": list(self.saved),
            "bytes": self.bytes,
        }
