"""Log-likelihoods of a model in which one matrix is edited, computed from the edited block on.

A plain forward pass keeps the hidden states before every block. An edit in block l then needs the blocks from
l on; an edit of the feed-forward part, if the block adds that part's output to the rest, needs only this part
and the blocks after l. In the last block the feed-forward part is computed where logits are wanted only.
Whether a block is built that way is not assumed from its name but tried out on the first batch.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import hollow, states_of, with_states
from kanna.calibration.passage import Reached, Stub, replaced
from kanna.calibration.states import States
from kanna.calibration.trial import try_out
from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.progress import Progress, told
from kanna.tasks.scorers.likelihood import Batch, Likelihood, Passes, read

# Rounding stays below; a norm between the feed-forward part and the sum does not.
_SEPARABLE = 1e-3
Rows = list[list[Likelihood]]


@dataclass(frozen=True)
class Edit:
    """New values for one parameter.

    Args:
        module: Path of the module that holds it.
        parameter: Its name there.
        value: In the shape of the parameter.
        layer: Block it lies in.
    """

    module: str
    parameter: str
    value: Tensor
    layer: int


@dataclass
class Effort:
    """What was computed.

    Args:
        layer_tokens: Blocks times tokens; a part of a block counts by its share of the block's weights.
    """

    layer_tokens: float = 0.0


@dataclass(frozen=True)
class _Part:
    """The feed-forward part of a block: its path, and its share of the block's weights."""

    path: str
    share: float


@dataclass
class _Run:
    """What one block computed.

    Args:
        inputs: (b, t, d) what its feed-forward part read; None if it was given more than that.
        part: What the part returned.
        output: What the block did.
    """

    inputs: Any = None
    part: Any = None
    output: Any = None


@dataclass
class Resumed:
    """Rows to score, a model to edit, and the hidden states before its blocks.

    Args:
        model: In evaluation mode; edits are put in for a moment and taken back exactly.
        found: Its inventory.
        passes: What scoring the rows takes.
        ranks: Also find each target's rank.
        states: Where hidden states are kept.
    """

    model: nn.Module
    found: Inventory
    passes: Passes
    ranks: bool = False
    states: States = field(default_factory=States)
    effort: Effort = field(default_factory=Effort)
    _parts: dict[int, _Part | None] = field(default_factory=dict)
    returned: list[Any] = field(default_factory=list)

    @cached_property
    def is_chain(self) -> bool:
        """Whether hidden states are all that is needed to go on behind a block."""
        config: Any = self.model.config
        try:
            return not try_out(config, self.found).irregular
        except InputError:  # it is run on more than tokens
            return False

    def base(self, progress: Progress = lambda *_: None, layers: Collection[int] | None = None) -> Rows:
        """Score the model as it is, and keep the hidden states before every block.

        Args:
            layers: Of these blocks only; None for all.
        """
        scored: dict[int, Likelihood] = {}
        for number, make in enumerate(told(progress, "base", self.passes.batches)):
            batch = make()
            with _watched(self.model, self.found.blocks if self.is_chain else ()) as seen:
                logits = self.passes.logits(self.model, batch.inputs, batch.places)
            self.returned = seen.returned
            for layer, hidden in enumerate(seen.inputs):
                last = layer == len(seen.inputs) - 1 and number == 0  # on which its parts are tried out
                if layers is None or layer in layers or last:
                    self.states.put(layer, number, hidden)
            self.effort.layer_tokens += len(self.found.blocks) * _tokens(batch)
            scored |= read(logits, batch, self.ranks)
        return self._rows(scored)

    def edited(self, variants: Sequence[Sequence[Edit]], progress: Progress = lambda *_: None) -> list[Rows]:
        """For each variant, a set of edits put in together, the likelihoods of all rows.

        The first block that is edited is the same in all variants, and `base` kept the states before it.
        """
        layers = {min(edit.layer for edit in edits) for edits in variants}
        if len(layers) != 1:
            raise ValueError(f"variants that begin in one block are wanted, found blocks {sorted(layers)}")
        layer = layers.pop()
        if not self.is_chain:
            return self._whole(variants, progress)
        self._part(len(self.found.blocks) - 1)  # found out while the model is as it was
        scored: list[dict[int, Likelihood]] = [{} for _ in variants]
        for number, make in enumerate(told(progress, f"layer {layer}", self.passes.batches)):
            batch = make()
            hidden = self.states.get(layer, number, batch.places.device)
            part = self._part(layer)
            run = None
            if part is not None and any(_inside(part, layer, edits) for edits in variants):
                self.effort.layer_tokens += _tokens(batch)
                run = self._run_block(layer, part.path, batch, hidden)
                run.output = run.output - run.part
            for pieces, edits in zip(scored, variants, strict=True):
                with applied(self.model, edits):
                    alone = part is not None and _inside(part, layer, edits)
                    logits = self._logits(layer, batch, hidden, run if alone else None)
                pieces |= read(logits, batch, self.ranks)
        return [self._rows(pieces) for pieces in scored]

    def _whole(self, variants: Sequence[Sequence[Edit]], progress: Progress) -> list[Rows]:
        """`edited` for a model that hands more than hidden states from block to block: all of it is run."""
        scored: list[dict[int, Likelihood]] = [{} for _ in variants]
        for make in told(progress, "edited", self.passes.batches):
            batch = make()
            for pieces, edits in zip(scored, variants, strict=True):
                with applied(self.model, edits):
                    logits = self.passes.logits(self.model, batch.inputs, batch.places)
                pieces |= read(logits, batch, self.ranks)
                self.effort.layer_tokens += len(self.found.blocks) * _tokens(batch)
        return [self._rows(pieces) for pieces in scored]

    def _rows(self, scored: dict[int, Likelihood]) -> Rows:
        return self.passes.rows([scored[piece] for piece in range(len(scored))])

    def _logits(self, layer: int, batch: Batch, hidden: Tensor, run: _Run | None) -> Tensor:
        """Logits at the batch's places with the model as it is now, from `layer` on.

        Args:
            run: Of the unedited block, its output less its part's, where only the part has changed.
        """
        blocks = self.found.blocks
        last = len(blocks) - 1
        resume = layer if run is None else layer + 1
        given = hidden if run is None else self._after(layer, batch, run)
        self.effort.layer_tokens += max(0, last + 1 - resume) * _tokens(batch)
        stubs = self._stubs(resume, given)
        part = self._part(last) if resume <= last else None
        with replaced(self.model, blocks[:resume], stubs), _only_scored(self.model, part, batch.places):
            if part is not None:
                self.effort.layer_tokens -= part.share * (_tokens(batch) - len(batch.places))
            return self.passes.logits(self.model, batch.inputs, batch.places)

    def _stubs(self, count: int, hidden: Tensor) -> list["_Given"]:
        """In place of the first blocks."""
        paths = self.found.blocks[:count]
        return [_Given(self.model.get_submodule(p), self.returned[i], hidden) for i, p in enumerate(paths)]

    def _after(self, layer: int, batch: Batch, run: _Run) -> Tensor:
        """The hidden states after `layer`, of which only the feed-forward part is computed anew."""
        part = self._part(layer)
        assert part is not None
        module = self.model.get_submodule(part.path)
        with torch.no_grad():
            if layer < len(self.found.blocks) - 1:
                self.effort.layer_tokens += part.share * _tokens(batch)
                moved: Tensor = run.output + module(run.inputs)
                return moved
            self.effort.layer_tokens += part.share * len(batch.places)
            flat: Tensor = run.output.reshape(-1, run.output.shape[-1]).clone()
            inputs = run.inputs.reshape(-1, run.inputs.shape[-1])
            flat[batch.places] += module(inputs[batch.places][None])[0]
            return flat.reshape(run.output.shape)

    def _part(self, layer: int) -> _Part | None:
        """The block's feed-forward part if its output is simply added; found out on the first batch."""
        if layer not in self._parts:
            self._parts[layer] = self._find_part(layer)
        return self._parts[layer]

    def _find_part(self, layer: int) -> _Part | None:
        path = feed_forward(self.found, layer)
        if path is None:
            return None
        batch = self.passes.batches[0]()
        if not self._is_separable(layer, path, batch, self.states.get(layer, 0, batch.places.device)):
            return None
        own = _weights(self.model.get_submodule(path))
        return _Part(path, own / _weights(self.model.get_submodule(self.found.blocks[layer])))

    def _run_block(
        self, layer: int, path: str, batch: Batch, hidden: Tensor, added: Tensor | None = None
    ) -> _Run:
        """Run one block on the hidden states before it.

        Args:
            path: Of its feed-forward part.
            hidden: (b, t, d)
            added: What is added to the part's output.
        """
        run, model, blocks = _Run(), self.model, self.found.blocks

        def part(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if len(args) == 1 and not kwargs:  # a part that is given the residual, too, adds it itself
                run.inputs, run.part = _copied(args[0]), _copied(output)
            return output if added is None else output + added

        def whole(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            run.output = states_of(output)
            raise Reached

        stubs = self._stubs(layer, hidden)
        with (
            model.get_submodule(path).register_forward_hook(part, with_kwargs=True),
            model.get_submodule(blocks[layer]).register_forward_hook(whole),
            suppress(Reached),
            replaced(model, blocks[:layer], stubs),
        ):
            self.passes.logits(model, batch.inputs, batch.places)
        return run

    def _is_separable(self, layer: int, path: str, batch: Batch, hidden: Tensor) -> bool:
        """Whether the part reads tokens one by one, and its output is added to the rest as it is.

        What is added on trial is as large as the block's output: a part of zeros must not pass for one that
        is added, whatever is behind it.
        """
        run = self._run_block(layer, path, batch, hidden)
        tensors = (run.output, run.inputs, run.part)
        if not all(isinstance(value, Tensor) for value in tensors) or run.part.shape != run.output.shape:
            return False
        noise = torch.randn(run.part.shape, generator=torch.Generator().manual_seed(layer))
        added = noise.to(run.part) * run.output.std()
        moved = self._run_block(layer, path, batch, hidden, added)
        with torch.no_grad():
            inputs = run.inputs.reshape(-1, run.inputs.shape[-1])[batch.places]
            alone = self.model.get_submodule(path)(inputs[None])[0]
        together = run.part.reshape(-1, run.part.shape[-1])[batch.places]
        return _alike(moved.output - run.output, added) and _alike(alone, together)


def _inside(part: _Part, layer: int, edits: Sequence[Edit]) -> bool:
    """Whether all that changes in the block is its feed-forward part."""
    return all(edit.module.startswith(f"{part.path}.") for edit in edits if edit.layer == layer)


def feed_forward(inventory: Inventory, layer: int) -> str | None:
    """Path of the module inside a block that holds all its feed-forward matrices and nothing else."""
    matrices = [matrix for matrix in inventory.matrices if matrix.layer == layer]
    parents = {matrix.module.rpartition(".")[0] for matrix in matrices if matrix.group == "mlp"}
    others = [matrix.module for matrix in matrices if matrix.group != "mlp"]
    if len(parents) != 1:
        return None
    path = parents.pop()
    alone = path != inventory.blocks[layer] and not any(other.startswith(f"{path}.") for other in others)
    return path if alone else None


@contextmanager
def applied(model: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Within the block, parameters have the values of `edits`; afterwards the very same tensors as before."""
    before = []
    try:
        for edit in edits:
            module = model.get_submodule(edit.module)
            old = getattr(module, edit.parameter)
            before.append((module, edit.parameter, old))
            value = edit.value.to(device=old.device, dtype=old.dtype)
            setattr(module, edit.parameter, nn.Parameter(value, requires_grad=False))
        yield
    finally:
        for module, name, old in reversed(before):
            setattr(module, name, old)


class _Given(Stub):
    """Hands on hidden states computed before."""

    def __init__(self, block: nn.Module, returned: Any, hidden: Tensor) -> None:
        super().__init__(block)
        self._returned, self._hidden = returned, hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return with_states(self._returned, self._hidden)


@dataclass
class _Seen:
    """Runs of blocks, in their order.

    Args:
        inputs: Hidden states that each was given.
        returned: What it returned, without tensors.
    """

    inputs: list[Tensor] = field(default_factory=list)
    returned: list[Any] = field(default_factory=list)


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str]) -> Iterator[_Seen]:
    """Note what every block reads and returns."""
    seen = _Seen()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.inputs.append(args[0] if args else kwargs["hidden_states"])
        seen.returned.append(hollow(output))

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(note, with_kwargs=True))
        yield seen


@contextmanager
def _only_scored(model: nn.Module, part: _Part | None, places: Tensor) -> Iterator[None]:
    """Within the block, the feed-forward part computes these places of the flattened batch only."""
    if part is None:
        yield
        return
    module = model.get_submodule(part.path)
    shapes: list[torch.Size] = []

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        shapes.append(hidden.shape)
        return (hidden.reshape(-1, hidden.shape[-1])[places][None], *args[1:])

    def spread(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = shapes.pop()
        flat = output.new_zeros(shape[0] * shape[1], output.shape[-1])
        flat[places] = output[0]
        return flat.reshape(*shape[:2], -1)

    with module.register_forward_pre_hook(select), module.register_forward_hook(spread):
        yield


def _copied(value: Any) -> Any:
    """Some blocks add to the tensor that their part returned, in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _alike(value: Tensor, other: Tensor) -> bool:
    return float((value - other).norm()) <= _SEPARABLE * float(other.norm())


def _tokens(batch: Batch) -> int:
    return batch.inputs["input_ids"].numel()


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
