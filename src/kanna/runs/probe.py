"""The verdict of a run without a task: what was written computes what was computed while compressing."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from kanna.calibration.windows import Windows, random_windows
from kanna.checkpoint.loader import load
from kanna.models.inventory import Inventory
from kanna.tasks.tokens.tokenizer import context_length

# Reloaded in float32 like the run itself, on the same windows; other batch shapes reorder sums.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What reloading showed.

    Args:
        passed: Everything below is as it should be.
        finite: No NaN or infinity in the logits.
        deviation: Largest relative difference of any block's output from the one recorded; None where there
            was nothing to compare with.
        reason: Why it could not be checked or did not pass; empty otherwise.
    """

    passed: bool
    finite: bool | None
    deviation: float | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_output(
    directory: Path, found: Inventory, probe: Windows, recorded: Mapping[int, Tensor], parameters: int
) -> Verdict:
    """Reload `directory` as a user would and compare every block's output on the probe.

    Args:
        probe: Windows whose outputs were recorded.
        recorded: Block -> hidden states (b, length, width) after it.
        parameters: Of the written model: where they do not fit in memory in float32, nothing is reloaded.
    """
    if 5 * parameters > psutil.virtual_memory().available:
        return Verdict(False, None, None, "too large to be reloaded in float32 with the memory that is free")
    model, _ = load(directory, dtype=torch.float32, verify=False)
    with torch.no_grad(), _outputs(model, found) as seen:
        kwargs = {"attention_mask": probe.mask.long()} if probe.padded else {}
        result = model(probe.ids, **kwargs)
    finite = bool(torch.isfinite(result.logits if hasattr(result, "logits") else result[0]).all())
    deviations = [_deviation(seen[layer], states, probe.mask) for layer, states in recorded.items()]
    worst = max(deviations, default=None)
    if not finite:
        return Verdict(False, False, worst, "the reloaded model's logits are not finite")
    if worst is not None and not worst <= TOLERANCE:
        return Verdict(False, True, worst, f"block outputs differ by {worst:.1e}, more than {TOLERANCE:.0e}")
    return Verdict(True, True, worst)


def verify_finite(directory: Path, parameters: int, length: int = 32) -> Verdict:
    """Reload `directory` as a user would; its logits on random tokens must be finite.

    Args:
        parameters: Of the written model: where they do not fit in memory, nothing is reloaded.
    """
    if 5 * parameters > psutil.virtual_memory().available:
        return Verdict(False, None, None, "too large to be reloaded in float32 with the memory that is free")
    model, _ = load(directory, dtype=torch.float32, verify=False)
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 2))
    probe = random_windows(vocabulary, min(length, context_length(model.config.to_dict(), None, None)), 0)
    with torch.no_grad():
        result = model(probe.ids)
    finite = bool(torch.isfinite(result.logits if hasattr(result, "logits") else result[0]).all())
    return Verdict(finite, finite, None, "" if finite else "the reloaded model's logits are not finite")


@contextmanager
def _outputs(model: nn.Module, found: Inventory) -> Any:
    seen: dict[int, Tensor] = {}
    handles = []
    for layer, path in enumerate(found.blocks):

        def note(_: nn.Module, __: object, output: Any, layer: int = layer) -> None:
            seen[layer] = output[0] if isinstance(output, tuple | list) else output

        handles.append(model.get_submodule(path).register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _deviation(output: Tensor, recorded: Tensor, mask: Tensor) -> float:
    """Relative Frobenius difference on tokens that are not padding."""
    a, b = output.double()[mask], recorded.double()[mask]
    return float((a - b).norm() / b.norm().clamp_min(1e-30))
