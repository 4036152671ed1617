"""What a model does with its blocks and layers, seen in one call with stand-ins in place of its weights.

The call costs no weights: every linear layer is replaced by a module that returns zeros and notes that it was
called. It says in which order the model runs its blocks, whether each of them is handed what the one before
returned and nothing else, which layers are never called, and of which layers the model's own code reads the
weight or the bias (then nothing can take their place).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from kanna.calibration.calls import body_call, ended, leaves
from kanna.errors import InputError
from kanna.forms import install
from kanna.models.inventory import Inventory, is_linear

_LENGTH = 11
# What may be asked of the sentinel that stands where a weight was.
_GETTERS: Sequence[Any] = (Tensor.dtype, Tensor.device, Tensor.is_meta, Tensor.layout)
_HARMLESS = tuple(getter.__get__ for getter in _GETTERS)


@dataclass(frozen=True)
class Trial:
    """What one call showed.

    Args:
        visits: Blocks in the order in which the model runs them.
        returned: What each block returns, by block; its hidden states are the first tensor in it.
        irregular: Why blocks cannot be run one after the other, each on what the one before it returned;
            empty where they can.
        mixed: Whether a layer of the inventory reads anything but one row for each token: then it cannot be
            told in its inputs what is padding.
        uncalled: Paths of linear layers of the inventory that were not called.
        read: Paths of those whose weight or bias the model's own code reads.
        has_logits: Whether the model gives logits, of which a loss can be made.
    """

    visits: tuple[int, ...]
    returned: Mapping[int, Any]
    irregular: str
    mixed: bool
    uncalled: frozenset[str]
    read: frozenset[str]
    has_logits: bool

    @property
    def repeated(self) -> frozenset[int]:
        """Blocks that are run more than once."""
        return frozenset(block for block in self.visits if self.visits.count(block) > 1)


def try_out(config: PretrainedConfig, inventory: Inventory, training: bool = False) -> Trial:
    """Run the model of a configuration once on stand-ins.

    Args:
        training: As it is run when it learns: some models then read weights that they else only call.

    Raises:
        InputError: It cannot be run on tokens alone.
    """
    model = empty_model(config, inventory.architecture, torch.float32)
    listed = {matrix.module for matrix in inventory.compressible}
    stand_ins = _stand_in(model, listed)
    _initialise(model, inventory.blocks)
    _fill(model)
    model.train(training)
    notes = _Notes()
    ids = ended(config, _ids(config)) if inventory.has_decoder_apart else _ids(config)
    try:
        with _observed(model, inventory.blocks, notes):
            output = body_call(model, ids, written=ids if inventory.has_decoder_apart else None)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{inventory.architecture} cannot be run on tokens alone: {type(error).__name__}: {error}",
            "kanna compresses models that read text",
        ) from error
    layers = {path: stand_in for path, stand_in in stand_ins.items() if path in listed}
    logits = getattr(output, "logits", None)
    return Trial(
        visits=tuple(visit.block for visit in notes.visits),
        returned={visit.block: visit.output for visit in notes.visits},
        irregular=_irregular(notes.visits, inventory.blocks, ids.shape),
        mixed=any(shape.numel() != _LENGTH for layer in layers.values() for shape in layer.shapes),
        uncalled=frozenset(path for path, layer in layers.items() if not layer.shapes),
        read=frozenset(path for path, layer in layers.items() if layer.read),
        has_logits=isinstance(logits, Tensor),
    )


def empty_model(config: PretrainedConfig, name: str, dtype: torch.dtype) -> nn.Module:
    """The model with parameters on the meta device and buffers (rotary tables and the like) computed.

    Args:
        name: Of its class in transformers.
        dtype: Of computing: some buffers are made in it, not in that of the files.
    """
    architecture = getattr(transformers, name)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = architecture._from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


class _Sentinel(Tensor):
    """Stands where a weight was, as in a form: whoever computes with it needs the weight itself."""

    owner: "_StandIn"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _HARMLESS:
            for value in leaves([args, kwargs or {}]):
                if isinstance(value, _Sentinel):
                    value.owner.read = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class _StandIn(nn.Module):
    """Returns zeros of the right shape.

    Attributes:
        shapes: Of what it was called on, the last dimension apart.
        strict: Whether to answer like a form: a weight of another shape, no bias.
        asked: Whether somebody asked for the bias.
        read: Whether somebody computes with its weight or its bias.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.read = self.asked = False
        self.strict = False
        self.shapes: list[torch.Size] = []
        self._shape: tuple[int, ...] = tuple(layer.weight.shape)  # type: ignore[arg-type]
        rows, columns = self._shape
        turned = isinstance(layer, Conv1D)
        self.in_features, self.out_features = (rows, columns) if turned else (columns, rows)
        self._has_bias = layer.bias is not None

    @property
    def weight(self) -> Tensor:
        if self.strict:
            return torch.zeros(1)
        value = torch.zeros(self._shape).as_subclass(_Sentinel)
        value.owner = self
        return value

    @property
    def bias(self) -> Tensor | None:
        """A form need not have the attribute, not even as None."""
        self.asked = True
        if self.strict and not self.read:
            raise AttributeError("bias")
        self.read = True
        return torch.zeros(self.out_features) if self._has_bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        self.shapes.append(inputs.shape[:-1])
        return inputs.new_zeros(*inputs.shape[:-1], self.out_features)


@dataclass
class _Visit:
    """One run of a block: what it was given, what of that had changed afterwards, and what it returned."""

    block: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: list[int]
    output: Any = None
    changed: bool = False


@dataclass
class _Notes:
    visits: list[_Visit] = field(default_factory=list)


@contextmanager
def _observed(model: nn.Module, blocks: Sequence[str], notes: _Notes) -> Iterator[None]:
    """While active, runs of blocks are noted. Their outputs are marked, as if gradients went through them:
    whatever the model computes from one is marked too."""
    with ExitStack() as hooks, torch.enable_grad():
        for number, path in enumerate(blocks):
            block = model.get_submodule(path)
            hooks.enter_context(
                block.register_forward_pre_hook(partial(_arrived, notes, number), with_kwargs=True)
            )
            hooks.enter_context(block.register_forward_hook(partial(_left, notes, number), with_kwargs=True))
        yield


def _ids(config: PretrainedConfig) -> Tensor:
    """(1, length) random tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 2))
    return torch.randint(vocabulary, (1, _LENGTH), generator=generator)


def _arrived(notes: _Notes, number: int, _: nn.Module, args: Any, kwargs: Any) -> None:
    notes.visits.append(_Visit(number, args, kwargs, _identities([args, kwargs])))


def _left(notes: _Notes, number: int, _: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    visit = next(visit for visit in reversed(notes.visits) if visit.block == number)
    visit.changed = _identities([args, kwargs]) != visit.before
    visit.output = _marked(output)
    return visit.output


def _marked(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_(True)
    if type(value) in (tuple, list):
        return type(value)(map(_marked, value))
    return value


def _identities(value: Any) -> list[int]:
    """Of everything in a tree of arguments: a container that a block writes into shows."""
    return [id(leaf) for leaf in leaves(value)]


def _irregular(visits: Sequence[_Visit], blocks: Sequence[str], tokens: torch.Size) -> str:
    if [visit.block for visit in visits] != list(range(len(blocks))):
        return "its blocks are not run once each, in their order"
    for before, visit in zip([None, *visits], visits, strict=False):
        first = visit.args[0] if visit.args else None
        if not isinstance(first, Tensor) or first.dim() != 3 or first.shape[:2] != tokens:
            return "a block does not read hidden states token by token"
        if before is not None and first is not next(iter(leaves(before.output)), None):
            return "something is computed between its blocks"
        if any(
            isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves([visit.args[1:], visit.kwargs])
        ):
            return "its blocks hand on more than hidden states"
        if visit.changed:
            return "its blocks write into what they are given"
    return ""


def _stand_in(model: nn.Module, listed: Collection[str]) -> dict[str, _StandIn]:
    """Replace linear layers, by path: those of the inventory, and of the others what is no more than one.

    Some routers are subclasses of a linear layer, and return more.
    """
    plain = (nn.Linear.forward, Conv1D.forward)
    linear = [
        (path, module)
        for path, module in model.named_modules()
        if is_linear(module) and (path in listed or type(module).forward in plain)
    ]
    stand_ins = {path: _StandIn(module) for path, module in linear}
    for path, stand_in in stand_ins.items():
        install(model, path, stand_in.eval())
    return stand_ins


def _initialise(model: nn.Module, blocks: Sequence[str]) -> None:
    """Find the layers whose biases are asked for where transformers initialises the modules that hold them.

    It does so while loading; what was loaded is left as it is, but must be there. Here nothing has values.
    """
    for path in blocks:
        for module in model.get_submodule(path).modules():
            layers = [child for child in module.children() if isinstance(child, _StandIn)]
            for layer in layers:
                layer.strict = True
            while layers and not _initialises(model, module):
                missed = [layer for layer in layers if layer.asked and not layer.read]
                if not missed:
                    break
                for layer in missed:
                    layer.read = True
            for layer in layers:
                layer.strict = False


def _initialises(model: nn.Module, module: nn.Module) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            model._init_weights(module)  # type: ignore[operator]
    except Exception:
        return False
    return True


def _fill(model: nn.Module) -> None:
    """Zeros for all other weights; the system gives no memory to zeros that nobody writes to."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
