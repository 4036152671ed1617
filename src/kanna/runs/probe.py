"""The check that needs no task: what was written computes what was computed while compressing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from kanna.calibration.behind import behind_blocks
from kanna.calibration.calls import body_call, ended, states_of
from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows, random_windows
from kanna.checkpoint.applied import ACTIVE, chosen
from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.models.inventory import Inventory
from kanna.runs.step import Recorded
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.tasks.tokens.tokenizer import context_length

# Reloaded in float32 like the run itself, on the same windows; other batch shapes reorder sums.
TOLERANCE = 1e-3
# Tokens of a probe where nothing was recorded.
_LENGTH = 32
# Bytes of a model in float32 from which on it is read back block by block, where nobody needs it whole.
LARGE = 2_000_000_000
# Rows on which what was written is compared with what was trained.
_RECORDED = 4


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
    directory: Path,
    inventory: Inventory | None,
    recorded: Recorded | None,
    parameters: int,
    scales: str | Path | None = ACTIVE,
    wanted: bool = True,
) -> tuple[Verdict, nn.Module | None]:
    """Reload `directory` as a user would, and run it on the recorded windows, or else on random tokens.

    A large model that nobody goes on with, or that does not fit in memory, is read back one block at a time.

    Args:
        inventory: None for a model without blocks that are known, of which no outputs are recorded.
        recorded: Block outputs to compare with; None compares nothing.
        parameters: Of the written model: where they do not fit in memory in float32, nothing is reloaded.
        scales: Folder of a set of scales that is laid over it; by default the one in use.
        wanted: Whether somebody goes on with the reloaded model.

    Returns:
        The verdict, and the reloaded model in float32 for whoever goes on with it, or None.
    """
    fits = 5 * parameters <= psutil.virtual_memory().available
    if (not fits or (not wanted and 4 * parameters > LARGE)) and inventory is not None:
        walker = Walker(Checkpoint.open(directory), inventory)
        if walker.streams and walker.trial.has_logits and chosen(directory, scales) is None:
            return by_block(walker, recorded), None
    if not fits:
        return Verdict(
            False, None, None, "too large to be reloaded in float32 with the memory that is free"
        ), None
    model, _ = load(directory, dtype=torch.float32, verify=False, scales=scales)
    states = {} if recorded is None else recorded.states
    windows = _random(model) if recorded is None else recorded.windows
    apart = bool(getattr(model.config, "is_encoder_decoder", False))
    apart = apart if inventory is None else inventory.has_decoder_apart
    ids = ended(model.config, windows.ids) if apart else windows.ids
    written = ids if apart else None
    watched = nullcontext(()) if inventory is None else block_outputs(model, inventory)
    with torch.no_grad(), watched as seen:
        result = body_call(model, ids, windows.mask if windows.padded else None, written)
    finite = bool(torch.isfinite(result.logits if hasattr(result, "logits") else result[0]).all())
    mask = windows.mask if windows.padded else None
    worst = max((_deviation(seen[visit], states[visit], mask) for visit in states), default=None)
    return _verdict(finite, worst), model


def by_block(walker: Walker, recorded: Recorded | None) -> Verdict:
    """The same check with one block in memory at a time, without the loader of transformers.

    Args:
        walker: Of what was written, one that streams.
    """
    states = {} if recorded is None else recorded.states
    windows = _random(walker.model) if recorded is None else recorded.windows
    ((ids, mask),) = windows.batches(len(windows.ids))
    (hidden,), calls = walker.prologue([(ids, mask)])
    walker.release()
    worst: float | None = None
    with torch.no_grad():
        for layer in walker.visits:
            hidden = states_of(calls[layer][0].on(hidden).run(walker.load(layer)))
            if layer in states:
                worst = max(worst or 0.0, _deviation(hidden, states[layer], mask))
        with behind_blocks(walker) as behind:
            pieces = behind.logits(ids, mask, hidden, vocabulary_of(walker.model))
            finite = all(bool(torch.isfinite(logits).all()) for _, _, logits in pieces)
    return _verdict(finite, worst)


def _verdict(finite: bool, worst: float | None) -> Verdict:
    """
    Args:
        worst: Largest deviation of a block's output; None where nothing was compared.
    """
    reason = "" if finite else "the reloaded model's logits are not finite"
    if finite and worst is not None and not worst <= TOLERANCE:
        reason = f"block outputs differ by {worst:.1e}, more than {TOLERANCE:.0e}"
    return Verdict(not reason, finite, worst, reason)


def _random(model: nn.Module) -> Any:
    config: Any = model.config
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 2))
    return random_windows(vocabulary, min(_LENGTH, context_length(config.to_dict(), None, None)), 0)


def record(model: nn.Module, inventory: Inventory, rows: Sequence[Sequence[int]]) -> Recorded:
    """Outputs of blocks on a few rows of token ids, for the check of what is written of this model."""
    some = rows[:_RECORDED]
    width = max(map(len, some))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in some])
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad(), block_outputs(model, inventory) as seen:
        body_call(model, ids.to(next(model.parameters()).device))
    return Recorded(windows, {visit: states.cpu() for visit, states in enumerate(seen)})


@contextmanager
def block_outputs(model: nn.Module, inventory: Inventory) -> Iterator[Sequence[Tensor]]:
    """Hidden states behind every run of a block, in the order of these runs."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Any) -> None:
        seen.append(states_of(output))

    with ExitStack() as hooks:
        for path in inventory.blocks:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(note))
        yield seen


def _deviation(output: Tensor, recorded: Tensor, mask: Tensor | None) -> float:
    """Relative Frobenius difference on tokens that are not padding."""
    computed, expected = output.double(), recorded.double()
    if mask is not None:
        computed, expected = computed[mask], expected[mask]
    return float((computed - expected).norm() / expected.norm().clamp_min(1e-30))
