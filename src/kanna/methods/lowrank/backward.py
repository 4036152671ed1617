"""Survey and gradients in one walk forward and one back, with one block in memory at a time.

    forward     hidden states before every block go to files
    loss        norm, head and loss in chunks of tokens; the gradient behind the last block goes to a file
    survey      from the last block to the first: a block is run again with gradients, so that what its
                matrices read and what the loss feels of their outputs is known while it is in memory; it is
                decomposed there, and the gradient before it goes to a file

The sums are those of a backward pass through the whole model (`in_memory`). What is finished is a file, so a
killed run goes on at the block that it was in:

    hidden-000, states-000      before a block, as the forward walk goes on from them and as they are kept
    gradient-000                of the loss in the states before a block; behind the last one: of its outputs
    survey-000, curves-000      decompositions of a block (`survey`)
    outputs-000                 gradient sums of a block, for `anchored` alone, which needs them once more
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from kanna.calibration.behind import behind_blocks
from kanna.calibration.calls import Call, states_of
from kanna.calibration.statistics import Reads, captured
from kanna.calibration.walker import Walker, batches_of
from kanna.calibration.windows import Windows
from kanna.methods.lowrank.config import CALIBRATED, LowRankConfig
from kanna.methods.lowrank.gradients import (
    OutputGradients,
    Sums,
    check_gradients,
    packed,
    unpacked,
    watched,
)
from kanna.methods.lowrank.loss import embedded, hidden_tokens, kind_of, loss_of
from kanna.methods.lowrank.survey import Decomposing, Survey, survey_file, survey_kind
from kanna.models.matrix import Matrix
from kanna.progress import Progress
from kanna.runs.workspace import Stream, Workspace
from kanna.tasks.tokens.padded import vocabulary_of

# Of every block, batch by batch.
Calls = Sequence[Sequence[Call]]


@dataclass(frozen=True)
class Portion:
    """A batch on its way through the blocks, and what it is for.

    Args:
        ids: (b, length).
        mask: (b, length) bool; None where nothing is padding.
        felt: The loss is taken on it.
        read: It counts in what matrices read.
        hidden: (b, length) bool: tokens that a masked model does not get to see.
    """

    ids: Tensor
    mask: Tensor | None
    felt: bool
    read: bool
    hidden: Tensor


@dataclass(frozen=True)
class BackwardWalk:
    """All that the walk needs.

    Args:
        walker: Of the model, one that streams.
        decomposing: What is made of the statistics of a block.
        windows: Calibration windows.
        workspace: Where its files go.
        keeps_outputs: Whether gradient sums stay there.
        kept: dtype of the states that the way back reads.
    """

    walker: Walker
    decomposing: Decomposing
    windows: Windows
    workspace: Workspace
    keeps_outputs: bool
    kept: torch.dtype = torch.float32

    @property
    def config(self) -> LowRankConfig:
        return self.decomposing.config

    @property
    def blocks(self) -> int:
        return len(self.walker.inventory.blocks)

    @property
    def by_layer(self) -> Mapping[int, Sequence[Matrix]]:
        return self.decomposing.by_layer

    @property
    def first(self) -> int:
        """The first block that is looked at: gradients need not reach further."""
        return min(self.by_layer)

    @cached_property
    def kind(self) -> str:
        return survey_kind(self.config, self.workspace, self.by_layer)

    @cached_property
    def portions(self) -> Sequence[Portion]:
        return portions_of(self.walker, self.windows, self.config)

    def run(self, progress: Progress) -> tuple[Survey, Mapping[str, OutputGradients]]:
        """Do what is not done yet.

        Returns:
            The decompositions, and gradient sums by module path, which are empty where none are kept.

        Raises:
            InputError: A gradient that is not finite.
        """
        if not all(map(self._is_done, self.by_layer)):
            at = self._back_from()
            if at is not None and not self._goes_on(at):
                self._drop()  # of a walk back of another method, or damaged
            hidden, calls = self._prologue()
            if self._back_from() is None:
                self._forward(hidden, calls, progress)
                self._loss(progress)
            self._back(calls, progress)
        self._drop()
        survey = Survey(self.workspace, sorted(self.by_layer), self.kind)
        if not self.keeps_outputs:
            return survey, {}
        return survey, StoredGradients(self.workspace, [_outputs(layer) for layer in sorted(self.by_layer)])

    def _drop(self) -> None:
        """Remove all that lies between blocks; first what says that there are states."""
        for at in (self._gradient, self._hidden, self._states):
            for layer in range(self.blocks + 1):
                at(layer).drop()

    def _goes_on(self, at: int) -> bool:
        """Whether all that a walk back from block `at` on needs is there, and done what lies behind it."""
        behind = all(self._is_done(layer) for layer in self.by_layer if layer >= at)
        return behind and all(self._states(layer).exists() for layer in range(self.first, at))

    def _is_done(self, layer: int) -> bool:
        wanted = [survey_file(self.kind, layer), *([_outputs(layer)] if self.keeps_outputs else [])]
        return all(map(self.workspace.has, wanted))

    def _forward(self, hidden: Sequence[Tensor], calls: Calls, progress: Progress) -> None:
        """States before every block, and behind the last one.

        Args:
            hidden: Before the first block.
        """
        there = [layer for layer in range(self.blocks + 1) if self._hidden(layer).exists()]
        start = max(there, default=0)
        if not all(self._states(layer).exists() for layer in range(self.first, min(start + 1, self.blocks))):
            there, start = [], 0
        if not there:
            self._keep(0, hidden)
        for layer in range(start, self.blocks):
            progress("forward", layer, self.blocks)
            block = self.walker.load(layer)
            outputs = []
            with torch.no_grad():
                for index in range(len(self.portions)):
                    before = self._hidden(layer).batch(index, self.walker.device)
                    outputs.append(states_of(calls[layer][index].on(before).run(block)).cpu())
            self._keep(layer + 1, outputs)
            self._hidden(layer).drop()
        progress("forward", self.blocks, self.blocks)

    def _keep(self, layer: int, states: Sequence[Tensor]) -> None:
        """States before a block: as they are, to go on with, and as the way back will read them."""
        if self.first <= layer < self.blocks:
            self._states(layer).save([each.to(self.kept) for each in states])
        self._hidden(layer).save(states)

    def _loss(self, progress: Progress) -> None:
        """The gradient of the loss behind the last block."""
        felt = [(index, portion) for index, portion in enumerate(self.portions) if portion.felt]
        device, found = self.walker.device, []
        generator = torch.Generator().manual_seed(self.config.seed)
        kind = kind_of(self.walker.model)
        vocabulary = None if kind == "label" else vocabulary_of(self.walker.model)
        with behind_blocks(self.walker) as behind:
            for done, (index, portion) in enumerate(felt):
                progress("loss", done, len(felt))
                ids = portion.ids.to(device)
                mask = None if portion.mask is None else portion.mask.to(device)
                hidden = portion.hidden.to(device)
                states = self._hidden(self.blocks).batch(index, device).requires_grad_(True)
                for rows, at, logits in behind.logits(ids, mask, states, vocabulary):
                    seen = None if mask is None else mask[rows]
                    loss_of(kind, logits, ids[rows], seen, hidden[rows], generator, at).backward()
                assert states.grad is not None
                found.append(states.grad.cpu())
            progress("loss", len(felt), len(felt))
        self._gradient(self.blocks).save(found)
        self._hidden(self.blocks).drop()

    def _back(self, calls: Calls, progress: Progress) -> None:
        at = self._back_from()
        assert at is not None
        count = self.blocks - self.first
        for layer in range(at - 1, self.first - 1, -1):
            progress("survey", self.blocks - 1 - layer, count)
            self._block(layer, calls[layer])
        progress("survey", count, count)

    def _block(self, layer: int, calls: Sequence[Call]) -> None:
        """Run a block again with gradients, decompose it, and write the gradient before it."""
        block, path = self.walker.load(layer), self.walker.inventory.blocks[layer]
        modules = dict.fromkeys(matrix.module for matrix in self.by_layer.get(layer, ()))
        watch = [(module, block.get_submodule(module.removeprefix(f"{path}."))) for module in modules]
        reads, sums, before, felt = Reads(), Sums(), [], 0
        done = layer not in self.by_layer or self._is_done(layer)
        with captured(block, path, () if done else modules) as seen:
            for index, portion in enumerate(self.portions):
                if not portion.felt and done:
                    continue
                states = self._states(layer).batch(index, self.walker.device).to(self.walker.dtype)
                if not portion.felt:
                    with torch.no_grad():
                        calls[index].on(states).run(block)
                else:
                    states.requires_grad_(True)
                    # Some blocks go on in place.
                    call = calls[index].on(states.clone())
                    fisher = self.config.method == "fwsvd"
                    with torch.enable_grad(), watched(() if done else watch, portion.mask, sums, fisher):
                        after = self._gradient(layer + 1).batch(felt, self.walker.device)
                        states_of(call.run(block)).backward(after)
                    assert states.grad is not None
                    before.append(states.grad.cpu())
                    felt += 1
                if portion.read:
                    reads.add(seen, portion.mask)
                seen.clear()
        if not done:
            check_gradients(sums)
            self._decompose(layer, block, reads, sums)
        if layer > self.first:
            self._gradient(layer).save(before)
            self._states(layer).drop()
            self._gradient(layer + 1).drop()

    def _decompose(self, layer: int, block: nn.Module, reads: Reads, sums: Sums) -> None:
        name = survey_file(self.kind, layer)
        if self.keeps_outputs:
            tensors = {f"{path}:second": packed(value.second) for path, value in sums.items()}
            tensors |= {f"{path}:fisher": value.fisher for path, value in sums.items()}
            counts = {path: value.count for path, value in sums.items()}
            self.workspace.save(_outputs(layer), tensors, counts)
        if not self.workspace.has(name):
            self.decomposing.save(self.workspace, self.kind, layer, block, reads.of, sums)

    def _back_from(self) -> int | None:
        """The block whose states a gradient is there of; None where the loss has not been taken."""
        there = (layer for layer in range(self.first + 1, self.blocks + 1) if self._gradient(layer).exists())
        return min(there, default=None)

    def _prologue(self) -> tuple[list[Tensor], Calls]:
        """Hidden states before the first block, and the calls of every block."""

        def around(index: int) -> AbstractContextManager[None]:
            hidden = self.portions[index].hidden
            return embedded(self.walker.model, hidden) if bool(hidden.any()) else nullcontext()

        batches = [(portion.ids, portion.mask) for portion in self.portions]
        hidden, calls = self.walker.prologue(batches, around)
        self.walker.release()
        return hidden, calls

    def _hidden(self, layer: int) -> Stream:
        return Stream(self.workspace.directory / f"hidden-{layer:03d}.safetensors")

    def _states(self, layer: int) -> Stream:
        return Stream(self.workspace.directory / f"states-{layer:03d}.safetensors")

    def _gradient(self, layer: int) -> Stream:
        return Stream(self.workspace.directory / f"gradient-{layer:03d}.safetensors")


class StoredGradients(Mapping[str, OutputGradients]):
    """Gradient sums by module path, read from their file when asked for: only one block's are in memory."""

    def __init__(self, shared: Workspace, files: Sequence[str]) -> None:
        self._shared = shared
        self._counts: dict[str, tuple[str, int]] = {
            path: (name, count) for name in files for path, count in shared.note(name).items()
        }

    def __getitem__(self, path: str) -> OutputGradients:
        name, count = self._counts[path]
        second, fisher = self._shared.pick(name, (f"{path}:second", f"{path}:fisher"))
        return OutputGradients(unpacked(second, len(fisher)), fisher, count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


def portions_of(walker: Walker, windows: Windows, config: LowRankConfig) -> list[Portion]:
    """What goes through the blocks: the windows of the loss, then those that only tell what matrices read.

    A masked model reads other tokens for its loss than otherwise; then the two are apart.
    """
    kind = kind_of(walker.model)
    reads = config.method in CALIBRATED
    used = windows.limited(config.gradient_tokens)
    generator = torch.Generator().manual_seed(config.seed)
    felt = [
        Portion(ids, mask, True, reads and kind != "masked", hidden_tokens(kind, ids, mask, generator))
        for ids, mask in batches_of(walker.trial, used, used.at_once(config.batch))
    ]
    rest = windows if kind == "masked" else windows.after(len(used.ids))
    if not reads or not len(rest.ids):
        return felt
    nothing = torch.zeros((1, 1), dtype=torch.bool)
    more = batches_of(walker.trial, rest, rest.at_once(config.batch))
    return felt + [Portion(ids, mask, False, True, nothing) for ids, mask in more]


def _outputs(layer: int) -> str:
    return f"outputs-{layer:03d}.safetensors"
