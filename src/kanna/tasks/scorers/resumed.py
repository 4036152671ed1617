"""Log-likelihoods of a model in which one matrix is edited, computed from the edited block on.

A plain forward pass keeps the hidden states before every block. An edit in block l then needs the blocks from
l on; an edit of the feed-forward part, if the block adds that part's output to the rest, needs only this part
and the blocks after l. In the last block the feed-forward part is computed where logits are wanted only.
Whether a block is built that way is not assumed from its name but tried out on the first batch.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.states import States
from kanna.calibration.stubs import Reached, Stub, replaced
from kanna.models.inventory import Inventory
from kanna.progress import Progress
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
        passes: Batches run, whole or from some block on.
    """

    layer_tokens: float = 0.0
    passes: int = 0


@dataclass(frozen=True)
class _Part:
    """The feed-forward part of a block: its path, and its share of the block's weights."""

    path: str
    share: float


@dataclass(frozen=True)
class _Split:
    """A block's output as the sum of its feed-forward part's and the rest.

    Args:
        inputs: (b, t, d) what the part reads.
        rest: (b, t, d) the block's output less the part's.
    """

    inputs: Tensor
    rest: Tensor


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
    as_tuple: bool = False

    @property
    def batches(self) -> Sequence[Callable[[], Batch]]:
        return self.passes.batches

    def base(self, progress: Progress = lambda *_: None, layers: Collection[int] | None = None) -> Rows:
        """Score the model as it is, and keep the hidden states before every block.

        Args:
            layers: Of these blocks only; None for all.
        """
        scored: dict[int, Likelihood] = {}
        for number, make in enumerate(self.batches):
            progress("base", number, len(self.batches))
            batch = make()
            with _watched(self.model, self.found.blocks) as seen:
                logits = self.passes.logits(self.model, batch.inputs, batch.places)
            self.as_tuple = seen.as_tuple
            for layer, hidden in enumerate(seen.inputs):
                last = layer == len(seen.inputs) - 1 and number == 0  # on which its parts are tried out
                if layers is None or layer in layers or last:
                    self.states.put(layer, number, hidden)
            self._count(len(self.found.blocks) * _tokens(batch))
            scored |= read(logits, batch, self.ranks)
        progress("base", len(self.batches), len(self.batches))
        return self._rows(scored)

    def edited(self, variants: Sequence[Sequence[Edit]], progress: Progress = lambda *_: None) -> list[Rows]:
        """For each variant, a set of edits put in together, the likelihoods of all rows.

        The first block that is edited is the same in all variants, and `base` kept the states before it.
        """
        layer = first_layer(variants)
        self._part(len(self.found.blocks) - 1)  # found out while the model is as it was
        scored: list[dict[int, Likelihood]] = [{} for _ in variants]
        for number, make in enumerate(self.batches):
            progress(f"layer {layer}", number, len(self.batches))
            batch = make()
            hidden = self.states.get(layer, number, batch.places.device)
            split = self._split(layer, batch, hidden, variants)
            for one, edits in zip(scored, variants, strict=True):
                with applied(self.model, edits):
                    given = split if self._in_part(layer, edits) else None
                    logits = self._logits(layer, batch, hidden, given)
                one |= read(logits, batch, self.ranks)
        progress(f"layer {layer}", len(self.batches), len(self.batches))
        return [self._rows(one) for one in scored]

    def _rows(self, scored: dict[int, Likelihood]) -> Rows:
        return self.passes.rows([scored[piece] for piece in range(len(scored))])

    def _logits(self, layer: int, batch: Batch, hidden: Tensor, split: _Split | None) -> Tensor:
        """Logits at the batch's places with the model as it is now, from `layer` on."""
        blocks = self.found.blocks
        last = len(blocks) - 1
        resume = layer if split is None else layer + 1
        given = hidden if split is None else self._after(layer, batch, split)
        whole = max(0, last + 1 - resume)
        self._count(whole * _tokens(batch))
        stubs = [_Given(self.model.get_submodule(path), self.as_tuple, given) for path in blocks[:resume]]
        part = self._part(last) if resume <= last else None
        with replaced(self.model, blocks[:resume], stubs), _only_scored(self.model, part, batch.places):
            if part is not None:
                self._count(-part.share * (_tokens(batch) - len(batch.places)), passes=0)
            return self.passes.logits(self.model, batch.inputs, batch.places)

    def _after(self, layer: int, batch: Batch, split: _Split) -> Tensor:
        """The hidden states after `layer`, of which only the feed-forward part is computed anew."""
        part = self._part(layer)
        assert part is not None
        module = self.model.get_submodule(part.path)
        with torch.no_grad():
            if layer < len(self.found.blocks) - 1:
                self._count(part.share * _tokens(batch), passes=0)
                return split.rest + module(split.inputs)
            self._count(part.share * len(batch.places), passes=0)
            flat = split.rest.reshape(-1, split.rest.shape[-1]).clone()
            inputs = split.inputs.reshape(-1, split.inputs.shape[-1])
            flat[batch.places] += module(inputs[batch.places][None])[0]
            return flat.reshape(split.rest.shape)

    def _split(
        self, layer: int, batch: Batch, hidden: Tensor, variants: Sequence[Sequence[Edit]]
    ) -> _Split | None:
        """Run the unedited block once, if any variant can use that."""
        if not any(self._in_part(layer, edits) for edits in variants):
            return None
        part = self._part(layer)
        assert part is not None
        self._count(_tokens(batch))
        run = _run_block(self, _Block(layer, part.path, batch, hidden))
        return _Split(run.inputs, run.output - run.part)

    def _in_part(self, layer: int, edits: Sequence[Edit]) -> bool:
        """Whether all that changes in the block is its feed-forward part."""
        part = self._part(layer)
        here = [edit.module for edit in edits if edit.layer == layer]
        return part is not None and all(module.startswith(f"{part.path}.") for module in here)

    def _part(self, layer: int) -> _Part | None:
        """The block's feed-forward part if its output is simply added; found out on the first batch."""
        if layer not in self._parts:
            self._parts[layer] = self._find_part(layer)
        return self._parts[layer]

    def _find_part(self, layer: int) -> _Part | None:
        path = feed_forward(self.found, layer)
        if path is None:
            return None
        batch = self.batches[0]()
        hidden = self.states.get(layer, 0, batch.places.device)
        if not _is_separable(self, _Block(layer, path, batch, hidden)):
            return None
        own = _weights(self.model.get_submodule(path))
        return _Part(path, own / _weights(self.model.get_submodule(self.found.blocks[layer])))

    def _count(self, layer_tokens: float, passes: int = 1) -> None:
        self.effort.layer_tokens += layer_tokens
        self.effort.passes += passes


def feed_forward(found: Inventory, layer: int) -> str | None:
    """Path of the module inside a block that holds all its feed-forward matrices and nothing else."""
    matrices = [one for one in found.matrices if one.layer == layer]
    parents = {one.module.rpartition(".")[0] for one in matrices if one.group == "mlp"}
    others = [one.module for one in matrices if one.group != "mlp"]
    if len(parents) != 1:
        return None
    path = parents.pop()
    alone = path != found.blocks[layer] and not any(other.startswith(f"{path}.") for other in others)
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

    def __init__(self, block: nn.Module, as_tuple: bool, hidden: Tensor) -> None:
        super().__init__(block, as_tuple)
        self._hidden = hidden

    def output(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return self._hidden


@dataclass
class _Seen:
    inputs: list[Tensor] = field(default_factory=list)
    as_tuple: bool = False


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str]) -> Iterator[_Seen]:
    """Note what every block reads, and whether it returns a tuple."""
    seen = _Seen()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.inputs.append(args[0] if args else kwargs["hidden_states"])
        seen.as_tuple = isinstance(output, tuple)

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


@dataclass
class _Run:
    """What one block computed: its output, and what its feed-forward part read and returned."""

    output: Any = None
    inputs: Any = None
    part: Any = None


@dataclass(frozen=True)
class _Block:
    """One block on the hidden states of one batch.

    Args:
        layer: Which block.
        path: Of its feed-forward part.
        hidden: (b, t, d) before the block.
    """

    layer: int
    path: str
    batch: Batch
    hidden: Tensor


def _run_block(work: Resumed, block: _Block, added: Tensor | None = None) -> _Run:
    """Run one block, with `added` added to its feed-forward part's output."""
    run = _Run()
    model, paths = work.model, work.found.blocks

    def part(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if len(args) == 1 and not kwargs:  # a part that is given the residual, too, adds it itself
            run.inputs, run.part = _copied(args[0]), _copied(output)
        return output if added is None else output + added

    def whole(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        run.output = output[0] if isinstance(output, tuple) else output
        raise Reached

    before = paths[: block.layer]
    stubs = [_Given(model.get_submodule(one), work.as_tuple, block.hidden) for one in before]
    with (
        model.get_submodule(block.path).register_forward_hook(part, with_kwargs=True),
        model.get_submodule(paths[block.layer]).register_forward_hook(whole),
        suppress(Reached),
        replaced(model, before, stubs),
    ):
        work.passes.logits(model, block.batch.inputs, block.batch.places)
    return run


def _copied(value: Any) -> Any:
    """Some blocks add to the tensor that their part returned, in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _is_separable(work: Resumed, block: _Block) -> bool:
    """Whether the part reads tokens one by one, and its output is added to the rest as it is.

    What is added on trial is as large as the block's output: a part of zeros must not pass for one that is
    added, whatever is behind it.
    """
    run = _run_block(work, block)
    tensors = (run.output, run.inputs, run.part)
    if not all(isinstance(one, Tensor) for one in tensors) or run.part.shape != run.output.shape:
        return False
    noise = torch.randn(run.part.shape, generator=torch.Generator().manual_seed(block.layer))
    added = noise.to(run.part) * run.output.std()
    moved = _run_block(work, block, added)
    places = block.batch.places
    with torch.no_grad():
        inputs = run.inputs.reshape(-1, run.inputs.shape[-1])[places]
        alone = work.model.get_submodule(block.path)(inputs[None])[0]
    together = run.part.reshape(-1, run.part.shape[-1])[places]
    return _alike(moved.output - run.output, added) and _alike(alone, together)


def _alike(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) <= _SEPARABLE * float(other.norm())


def first_layer(variants: Sequence[Sequence[Edit]]) -> int:
    """The first block that is edited, the same in all variants."""
    layers = {min(edit.layer for edit in edits) for edits in variants}
    if len(layers) != 1:
        raise ValueError(f"variants that begin in one block are wanted, found blocks {sorted(layers)}")
    return layers.pop()


def _tokens(batch: Batch) -> int:
    return batch.inputs["input_ids"].numel()


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
