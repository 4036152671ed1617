"""What a model computes from the hidden states behind its last block, without the blocks: norm, head, logits.

The model itself is run, with stubs in place of its blocks of which the last one returns the states that it is
told to. So whatever the model's code does with them (scales, soft caps, heads of several layers) is done.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import body_call, with_states
from kanna.calibration.passage import Stub, replaced
from kanna.calibration.walker import Walker

# Bytes of logits that are in memory at a time; a loss holds a few times as much.
_LOGITS = 64_000_000


class _Last(Stub):
    """Returns the states that it holds, as its block would."""

    def __init__(self, block: nn.Module, returned: Any) -> None:
        super().__init__(block)
        self.returned = returned
        self.states: Tensor | None = None

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        return with_states(self.returned, hidden if self.states is None else self.states)


class Behind:
    """A model without its blocks.

    Args:
        model: With weights outside its blocks, and stubs in their places.
        last: The stub of the last block.
    """

    def __init__(self, model: nn.Module, last: _Last) -> None:
        self._model, self._last = model, last
        self._takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters

    def logits(
        self, ids: Tensor, mask: Tensor | None, states: Tensor, vocabulary: int | None
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Logits of a batch, a few positions or rows at a time where a vocabulary is large.

        Args:
            ids: (b, length).
            mask: (b, length) bool; None where nothing is padding.
            states: (b, length, width) behind the last block; gradients reach them.
            vocabulary: Outputs of each token; None where a head gives one for a row, or nobody knows.

        Yields:
            (rows, positions, logits of those). Each is to be used before the next one is made.
        """
        rows, length = ids.shape
        most = max(1, _LOGITS // (4 * (vocabulary or 1)))
        everything = slice(0, rows), slice(0, length)
        if not vocabulary or rows * length <= most:
            yield *everything, self._run(ids, mask, states)
        elif self._takes_positions:
            step = max(1, most // rows)
            for start in range(0, length, step):
                at = slice(start, min(start + step, length))
                yield everything[0], at, self._run(ids, mask, states, torch.arange(at.start, at.stop))
        else:
            step = max(1, most // length)
            for start in range(0, rows, step):
                at = slice(start, min(start + step, rows))
                yield at, everything[1], self._run(ids[at], None if mask is None else mask[at], states[at])

    def _run(
        self, ids: Tensor, mask: Tensor | None, states: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        self._last.states = states
        more = {} if positions is None else {"logits_to_keep": positions.to(ids.device)}
        logits: Tensor = body_call(self._model, ids, mask, more=more).logits
        self._last.states = None
        return logits


@contextmanager
def behind_blocks(walker: Walker) -> Iterator[Behind]:
    """Within the block, what follows the blocks of a model has its weights, and nothing else is in memory.

    Args:
        walker: One that streams.
    """
    with walker.whole_outside_blocks() as model:
        paths = walker.inventory.blocks
        stubs = [_Last(model.get_submodule(path), walker.trial.returned[i]) for i, path in enumerate(paths)]
        with replaced(model, paths, stubs):
            yield Behind(model, stubs[-1])
