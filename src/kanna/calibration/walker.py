"""Run a model block by block, with the weights of one block in memory at a time.

The model is built on the meta device. What lies before the blocks is given its weights once, and each
block is replaced by a stub that notes how it was called; so every block's masks, positions and other
arguments are known without computing a block. Then `load` gives one block with its weights.

That takes a model whose blocks are simply run one after the other, which is tried out and not assumed
(`calibration.trial`). Any other model is in memory as a whole, and runs itself (`calibration.passage`).
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import Call, body, body_call, leaves, with_states
from kanna.calibration.passage import Passage, Reached, Stream, Streamed, Stub, paused, replaced
from kanna.calibration.trial import Trial, empty_model, try_out
from kanna.calibration.windows import Windows
from kanna.checkpoint.declared import forms_of, put_forms
from kanna.checkpoint.loader import load_weights
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.models.names import FileNames
from kanna.models.skeleton import read_config

log = logging.getLogger("kanna")

Batches = Sequence[tuple[Tensor, Tensor | None]]


class _Noting(Stub):
    """Notes how its block is called, and returns the hidden states that it was given as the block would.

    Args:
        returned: What the block returned once.
    """

    def __init__(self, block: nn.Module, returned: Any) -> None:
        super().__init__(block)
        self.returned = returned
        self.seen: list[tuple[Tensor, Call]] = []

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Parameters of the model among them would gather gradients where a block is trained.
        others = tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}
        # Not the states: those of the first block would be kept to the end.
        self.seen.append((hidden, Call((None, *others[0]), others[1])))
        return with_states(self.returned, hidden)


class Walker:
    """Blocks of a model on disk, one at a time.

    Args:
        checkpoint: The model.
        inventory: Its inventory.
        device: Where blocks are computed.
        dtype: In which they are computed, whatever the dtype on disk.
        whole: Gives the model itself on `device` in `dtype`, for a run that has it in memory anyway: then
            blocks are copies of its blocks, and nothing is read. It is left as it is.
        trial: What one call of the model showed; tried out where it is not given.

    Raises:
        InputError: A weight of a block is missing in the files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        inventory: Inventory,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        whole: Callable[[], nn.Module] | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.checkpoint, self.inventory = checkpoint, inventory
        self.device, self.dtype = torch.device(device), dtype
        self.trial = trial or try_out(read_config(checkpoint.directory), inventory)
        self.model = _empty(checkpoint, inventory.architecture, dtype)
        self._names = FileNames.of(self.model, checkpoint.tensors)
        self._whole = whole
        self._outside: dict[str, nn.Parameter] = {}
        self._absent: dict[str, nn.Module] = {}
        self.streams = whole is None and not self.trial.irregular and self._is_streamable()

    @property
    def visits(self) -> tuple[int, ...]:
        """Blocks in the order in which the model runs them."""
        return self.trial.visits

    @cached_property
    def _resident(self) -> nn.Module | None:
        """The model in memory; None where blocks come from disk one at a time. Loaded when it is needed."""
        if self.streams:
            return None
        return self._load_whole() if self._whole is None else self._whole()

    def load(self, index: int) -> nn.Module:
        """Block `index` with its weights, a module of its own."""
        path = self.inventory.blocks[index]
        if self._resident is not None:
            block = _copied(self._absent.get(path) or self._resident.get_submodule(path))
            return block.to(self.device).eval().requires_grad_(False)
        block = copy.deepcopy(self.model.get_submodule(path))
        self._fill(block, path)
        return block.eval()

    def batches(self, windows: Windows, size: int) -> Batches:
        """(ids, mask) as blocks see them; the first window is a batch of its own where it must be."""
        return batches_of(self.trial, windows, size, lone=bool(self.trial.irregular))

    @contextmanager
    def walk(
        self, batches: Batches, streams: Sequence[Callable[[int], Stream]], start: int = 0
    ) -> Iterator[list[Passage]]:
        """Equal passages of all batches through the blocks, one for each of `streams`.

        Args:
            batches: As `batches` gives them.
            streams: Where hidden states before a block are kept, if they can be.
            start: The first block that there are no hidden states behind; those before it are there. Where
                they cannot be kept, passages begin with the first block of all.
        """
        if self.trial.irregular:
            assert self._resident is not None
            ids = [tokens.to(self.device) for tokens, _ in batches]
            blocks = self.inventory.blocks
            self._absent = {path: self._resident.get_submodule(path) for path in blocks}
            with paused(self._resident, blocks, ids, len(streams)) as passages:
                yield passages
            self._absent = {}
            return
        hidden, calls = self.prologue(batches)
        for at in streams:
            if start == 0:
                at(0).save(hidden)
        yield [Streamed(calls, at, start, self.device) for at in streams]

    def prologue(
        self,
        batches: Batches,
        around: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> tuple[list[Tensor], list[list[Call]]]:
        """Hidden states before the first block, and the calls of every block, which is regular.

        Args:
            around: What a batch is run within, by its number.

        Returns:
            ([hidden (b, length, width) per batch], [[Call per batch] per block]).
        """
        model = self.model if self._resident is None else self._resident
        if self._resident is None:
            self._fill_outside_blocks()
        paths, returned = self.inventory.blocks, self.trial.returned
        stubs = [_Noting(model.get_submodule(path), returned[i]) for i, path in enumerate(paths)]
        with torch.no_grad(), replaced(model, paths, stubs):
            for index, (ids, mask) in enumerate(batches):
                with around(index):
                    _run_to_last_stub(body(model), ids.to(self.device), mask, stubs)
        hidden = [seen.to(self.dtype) for seen, _ in stubs[0].seen]
        return hidden, [[call for _, call in stub.seen] for stub in stubs]

    @contextmanager
    def whole_outside_blocks(self) -> Iterator[nn.Module]:
        """The model with weights everywhere but in its blocks, heads too; they are let go of afterwards."""
        assert self._resident is None
        try:
            self._fill_outside_blocks(heads=True)
            yield self.model
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the weights outside the blocks; they are read again when they are needed."""
        for module in self.model.modules():
            for name, value in module.named_parameters(recurse=False):
                if not value.is_meta:
                    setattr(module, name, nn.Parameter(value.to("meta"), requires_grad=False))
        self._outside.clear()

    def _fill_outside_blocks(self, heads: bool = False) -> None:
        """Give what lies outside the blocks its weights where it has none; what is tied is read once.

        Args:
            heads: Also what follows the body of the model.
        """
        blocks = f"{self.inventory.blocks_path}."
        # Before filling, which unties what is tied.
        inside = {id(module) for module in (self.model if heads else body(self.model)).modules()}
        filled = [
            (path, module)
            for path, module in self.model.named_modules()
            if id(module) in inside and not path.startswith(blocks) and _is_empty(module)
        ]
        needed = [
            name
            for path, module in filled
            for name, _ in module.named_parameters(prefix=path, recurse=False)
            if not name.startswith(blocks)
        ]
        for path, module in self.model.named_modules():
            if id(module) in inside and not path.startswith(blocks):
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = buffer.to(self.device)
        for path, module in filled:
            self._fill(module, path, recurse=False)
        empty = {name for name, value in self.model.named_parameters() if value.is_meta}
        if missing := [name for name in needed if name in empty]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{self.checkpoint.directory} lacks the tensor {missing[0]}{more}", "fetch the model again"
            )

    def _is_streamable(self) -> bool:
        """Whether every weight of the blocks lies in the files under its own name."""
        blocks = f"{self.inventory.blocks_path}."
        wanted = [name for name, _ in _stored(self.model) if name.startswith(blocks)]
        return all(self._names.get(name) is not None for name in wanted)

    def _load_whole(self) -> nn.Module:
        log.info(
            "%s: loading the model whole",
            self.trial.irregular or "this architecture's files are laid out differently from its blocks",
        )
        loaded: nn.Module = load_weights(self.checkpoint, self.dtype)
        return loaded.to(self.device).requires_grad_(False)

    def _fill(self, module: nn.Module, path: str, recurse: bool = True) -> None:
        """Give the parameters of `module`, and the buffers of forms, their values from the files."""
        prefix = f"{path}." if path else ""
        wanted = {prefix + name: name for name, _ in _stored(module, recurse)}
        for full, local in wanted.items():
            if (stored := self._names.get(full)) is None:
                continue
            if not recurse and stored in self._outside:
                setattr(module, local, self._outside[stored])
                continue
            self._assign(module, local, self.checkpoint.tensor(stored))
            if not recurse and local in module._parameters:
                self._outside[stored] = module.get_parameter(local)
        if recurse:
            module.to(device=self.device)
            return
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(self.device)

    def _assign(self, module: nn.Module, name: str, value: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if (buffer := owner._buffers.get(leaf)) is not None:  # of a form, which says in what it holds them
            owner._buffers[leaf] = value.to(self.device, buffer.dtype)
        else:
            placed = value.to(self.device, self.dtype)
            setattr(owner, leaf, nn.Parameter(placed, requires_grad=False))


def batches_of(trial: Trial, windows: Windows, size: int, lone: bool = False) -> Batches:
    """(ids, mask) of so many windows; without padding where it cannot be told in what a matrix reads."""
    mixed = trial.mixed or trial.irregular
    return windows.unpadded(size, lone) if (mixed and windows.padded) or lone else windows.batches(size)


def _is_empty(module: nn.Module) -> bool:
    """Whether a parameter or a buffer of its own has no values."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return any(value.is_meta for _, value in own)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def _copied(block: nn.Module) -> nn.Module:
    """A block may hold states of its last run, which are in a graph of gradients: they are copied without."""
    memo: dict[int, Any] = {}
    for module in block.modules():
        for value in leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(block, memo)


def _empty(checkpoint: Checkpoint, architecture: str, dtype: torch.dtype) -> nn.Module:
    """The model without weights, in its forms."""
    model = empty_model(read_config(checkpoint.directory), architecture, dtype)
    put_forms(model, forms_of(checkpoint.config), type(model).__name__, checkpoint.tensors)
    return model.eval().requires_grad_(False)


def _names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a parameter -> its other names, where it is tied: files hold it under one of them."""
    known: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known.setdefault(id(parameter), []).append(name)
    return {
        name: tuple(n for n in names if n != name)
        for names in known.values()
        for name in names
        if len(names) > 1
    }


def _stored(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """What the files hold: parameters, and of the buffers those of forms; all others have been computed."""
    yield from module.named_parameters(recurse=recurse)
    yield from ((name, value) for name, value in module.named_buffers(recurse=recurse) if value.is_meta)


def _run_to_last_stub(base: nn.Module, ids: Tensor, mask: Tensor | None, stubs: Sequence[_Noting]) -> None:
    """What follows the last block needs no run."""

    def stop(*_: object) -> None:
        raise Reached

    with stubs[-1].register_forward_hook(stop), suppress(Reached):
        body_call(base, ids, mask)
