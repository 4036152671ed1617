"""Run a model block by block, with the weights of one block in memory at a time.

The model is built on the meta device. What lies before the blocks is given its weights once, and each
block is replaced by a stub that notes how it was called; so every block's masks, positions and other
arguments are known without computing a block. Then `load` gives one block with its weights.
"""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from kanna.calibration.windows import Windows
from kanna.checkpoint.declared import forms_of, put_forms
from kanna.checkpoint.loader import load_weights
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.forms import install
from kanna.models.inventory import Inventory
from kanna.models.names import FileNames
from kanna.models.skeleton import architecture_of, read_config

log = logging.getLogger("kanna")


class Reached(Exception):
    """Raised by a hook where a model's run may end."""


class Stub(nn.Module):
    """Stands in for a block: hands the hidden states on.

    Args:
        block: Whose plain attributes, such as `attention_type`, the model may ask for.
        as_tuple: Whether the model takes the first element of what a block returns.
    """

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        plain = (str, int, float, bool)
        self.__dict__.update(
            {k: v for k, v in vars(block).items() if isinstance(v, plain) and k != "training"}
        )

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = self.output(hidden, args, kwargs)
        return (states,) if self.as_tuple else states

    def output(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states after the block."""
        return hidden


@contextmanager
def replaced(model: nn.Module, paths: Sequence[str], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the submodules at `paths` are `modules`."""
    originals = [model.get_submodule(path) for path in paths]
    try:
        for path, module in zip(paths, modules, strict=True):
            install(model, path, module)
        yield
    finally:
        for path, original in zip(paths, originals, strict=True):
            install(model, path, original)


@dataclass(frozen=True)
class Call:
    """How the model calls one block for one batch, the hidden states apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stub(Stub):
    """Notes how its block is called."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__(block, as_tuple)
        self.seen: list[tuple[Tensor, Call]] = []

    def output(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        self.seen.append((hidden, Call(args, kwargs)))
        return hidden


class Walker:
    """Blocks of a model on disk, one at a time.

    Args:
        checkpoint: The model.
        inventory: Its inventory.
        device: Where blocks are computed.
        dtype: In which they are computed, whatever the dtype on disk.
        whole: Gives the model itself on `device` in `dtype`, for a run that has it in memory anyway: then
            blocks are copies of its blocks, and nothing is read. It is left as it is.

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
    ) -> None:
        self.checkpoint, self.inventory = checkpoint, inventory
        self.device, self.dtype = torch.device(device), dtype
        self.model = _empty_model(checkpoint, dtype)
        self._names = FileNames.of(self.model, checkpoint.tensors)
        self._whole = whole
        self._filled = False
        self.streams = whole is None and self._is_streamable()

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
            block = copy.deepcopy(self._resident.get_submodule(path))
            return block.to(self.device).eval().requires_grad_(False)
        block = copy.deepcopy(self.model.get_submodule(path))
        self._fill(block, path)
        return block.eval()

    def prologue(self, windows: Windows, batch: int) -> tuple[list[Tensor], list[list[Call]]]:
        """Hidden states before the first block, and the calls of every block.

        Returns:
            ([hidden (b, length, width) per batch], [[Call per batch] per block]).
        """
        model = self.model if self._resident is None else self._resident
        if self._resident is None:
            self._fill_outside_blocks()
        with torch.no_grad():
            for as_tuple in (False, True):
                stubs = [_Stub(model.get_submodule(path), as_tuple) for path in self.inventory.blocks]
                with replaced(model, self.inventory.blocks, stubs):
                    if _try_run(model, windows, batch, self.device, stubs, last=as_tuple):
                        break
        hidden = [seen.to(self.dtype) for seen, _ in stubs[0].seen]
        return hidden, [[call for _, call in stub.seen] for stub in stubs]

    def _fill_outside_blocks(self) -> None:
        """Give what runs before the blocks its weights, the first time; heads are never run."""
        if self._filled:
            return
        base = _base(self.model)
        held = {id(parameter) for parameter in base.parameters()}
        # Before filling, which unties what is tied.
        needed = [name for name, value in self.model.named_parameters() if id(value) in held]
        inside = {id(module) for module in base.modules()}
        for path, module in list(self.model.named_modules()):
            if id(module) in inside and not path.startswith(f"{self.inventory.blocks_path}."):
                self._fill(module, path, recurse=False)
        self._filled = True
        empty = {name for name, value in self.model.named_parameters() if value.is_meta}
        blocks = f"{self.inventory.blocks_path}."
        if missing := [name for name in needed if name in empty and not name.startswith(blocks)]:
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
            "this architecture's files are laid out differently from its blocks: loading the model whole"
        )
        loaded: nn.Module = load_weights(self.checkpoint, self.dtype)
        return loaded.to(self.device).requires_grad_(False)

    def _fill(self, module: nn.Module, path: str, recurse: bool = True) -> None:
        """Give the parameters of `module`, and the buffers of forms, their values from the files."""
        prefix = f"{path}." if path else ""
        wanted = {prefix + name: name for name, _ in _stored(module, recurse)}
        for full, local in wanted.items():
            if (stored := self._names.get(full)) is not None:
                self._assign(module, local, self.checkpoint.tensor(stored))
        if recurse:
            module.to(device=self.device)
            return
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(self.device)

    def _assign(self, module: nn.Module, name: str, value: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        # Indices stay the whole numbers that they are.
        placed = value.to(self.device, self.dtype if value.is_floating_point() else None)
        if leaf in owner._buffers:
            owner._buffers[leaf] = placed
        else:
            setattr(owner, leaf, nn.Parameter(placed, requires_grad=False))


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The hidden states (b, length, width) after `block`."""
    out = block(hidden, *call.args, **call.kwargs)
    result: Tensor = out[0] if isinstance(out, tuple | list) else out
    return result


def _empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The model with parameters on the meta device and buffers (rotary tables and the like) computed.

    Args:
        dtype: Of computing: some buffers are made in it, not in that of the files.
    """
    config = read_config(checkpoint.directory)
    architecture = architecture_of(config)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = architecture._from_config(config, dtype=dtype)
    put_forms(model, forms_of(checkpoint.config), type(model).__name__, checkpoint.tensors)
    return model.eval().requires_grad_(False)


def _stored(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """What the files hold: parameters, and of the buffers those of forms; all others have been computed."""
    yield from module.named_parameters(recurse=recurse)
    yield from ((name, value) for name, value in module.named_buffers(recurse=recurse) if value.is_meta)


def _base(model: nn.Module) -> nn.Module:
    """The model without its head."""
    base: nn.Module = getattr(model, "base_model", model)
    return base


def _try_run(
    model: nn.Module, windows: Windows, batch: int, device: torch.device, stubs: list[_Stub], last: bool
) -> bool:
    """Run the part before the blocks; whether every block was handed what the one before it returned.

    Some models take a block's output as it is, others its first element; a stub of the wrong kind shows
    in what the next block is given, or in an error.
    """
    base = _base(model)
    try:
        for ids, mask in zip(windows.ids.split(batch), windows.mask.split(batch), strict=True):
            kwargs = {"attention_mask": mask.long().to(device)} if windows.padded else {}
            _run_to_last_stub(base, ids.to(device), kwargs, stubs)
    except Exception:
        if last:
            raise
        return False
    return all(
        after is before or after.shape == before.shape
        for left, right in itertools.pairwise(stubs)
        for (before, _), (after, _) in zip(left.seen, right.seen, strict=True)
    )


def _run_to_last_stub(base: nn.Module, ids: Tensor, kwargs: dict[str, Any], stubs: list[_Stub]) -> None:
    """What follows the last block needs no run."""

    def stop(*_: object) -> None:
        raise Reached

    with stubs[-1].register_forward_hook(stop), suppress(Reached):
        config = getattr(base, "config", None)
        if getattr(config, "is_decoder", True) or hasattr(config, "use_cache"):
            kwargs = {"use_cache": False, **kwargs}
        base(ids, **kwargs)
