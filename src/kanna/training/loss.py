"""What a step makes smaller: cross-entropy, or the divergence from a teacher, summed over scored tokens.

Logits exist at scored places only, and for a large vocabulary not even at all of these together: the output
layer is applied to some places at a time, and again on the way back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kanna.tasks.scorers.likelihood import most_logits
from kanna.tasks.scorers.masked import logits_at_masks
from kanna.tasks.tokens.padded import inputs
from kanna.training.examples import Example

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Read:
    """Examples as the model reads them.

    Args:
        inputs: Keyword arguments of the model, padded on the right.
        places: (t,) places of the flattened batch that predict a scored token.
        targets: (t,) these tokens; for a classification head, the right outputs.
        masks: Whether the tokens stand at masks.
    """

    inputs: dict[str, Tensor]
    places: Tensor
    targets: Tensor
    masks: bool = False


def read(model: nn.Module, examples: Sequence[Example]) -> Read:
    """The tensors of one forward pass, on the model's device."""
    if examples[0].label is not None:
        given = inputs(model, [example.ids for example in examples])
        labels = torch.tensor([example.label for example in examples])
        return Read(given, torch.arange(len(examples)), labels.to(given["input_ids"].device))
    if examples[0].filled is not None:
        return _read_masks(model, examples)
    given = inputs(model, [example.ids[:-1] for example in examples])  # nothing is predicted from the last
    device, width = given["input_ids"].device, given["input_ids"].shape[1]
    scored = [
        (row * width + place - 1, token)
        for row, example in enumerate(examples)
        for place, (token, wanted) in enumerate(zip(example.ids, example.scored, strict=True))
        if wanted
    ]
    places, targets = torch.tensor(scored, device=device).unbind(1)
    return Read(given, places, targets)


def _read_masks(model: nn.Module, examples: Sequence[Example]) -> Read:
    """Of texts with masks: each is predicted where it stands."""
    given = inputs(model, [example.ids for example in examples])
    device, width = given["input_ids"].device, given["input_ids"].shape[1]
    places = [
        row * width + place
        for row, example in enumerate(examples)
        for place, wanted in enumerate(example.scored)
        if wanted
    ]
    targets = [token for example in examples for token in example.filled or ()]
    return Read(given, torch.tensor(places, device=device), torch.tensor(targets, device=device), True)


def summed_loss(
    model: nn.Module, examples: Sequence[Example], teacher: nn.Module | None = None, in_parts: bool = True
) -> Tensor:
    """Loss of some examples, summed over what is scored in them, nats.

    Args:
        teacher: A model of the same vocabulary, from whose predictions the divergence is taken; None for
            the cross-entropy of the right tokens.
        in_parts: Whether the output layer may be applied to some places at a time; see `reads_in_parts`.
    """
    batch = read(model, examples)
    if examples[0].label is not None:
        other = None if teacher is None else _without_gradients(teacher, batch.inputs)
        return _place_loss(model(**batch.inputs).logits.float(), other, batch.targets)
    if in_parts and len(batch.places) > most_logits(model):
        return _in_parts(model, batch, teacher)
    other = None if teacher is None else logits_of(teacher, batch, gradients=False)
    return _place_loss(logits_of(model, batch), other, batch.targets)


def reads_in_parts(model: nn.Module, example: Example) -> bool:
    """Whether it is known what the model does to logits behind its output layer."""
    if example.label is not None or example.filled is not None:
        return False
    with torch.no_grad():
        return _before_head(model, read(model, [example])) is not None


def _place_loss(logits: Tensor, teacher: Tensor | None, targets: Tensor) -> Tensor:
    if teacher is None:
        return functional.cross_entropy(logits, targets, reduction="sum")
    return functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )


def _without_gradients(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**given).logits
        return logits.float()


def logits_of(model: nn.Module, batch: Read, gradients: bool = True) -> Tensor:
    """(places, vocabulary) float32 logits at the scored places."""
    if batch.masks:
        return logits_at_masks(model, batch.inputs, batch.places, gradients)
    with torch.set_grad_enabled(gradients), _head_reads(model, lambda h: _at(h, batch.places)):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits[0].float()


def _in_parts(model: nn.Module, batch: Read, teacher: nn.Module | None) -> Tensor:
    """The same sum, the output layer applied to some places at a time."""
    student = _before_head(model, batch)
    with torch.no_grad():
        other = None if teacher is None else _before_head(teacher, batch)
    if student is None or (teacher is not None and other is None):
        raise ValueError("reads_in_parts was not asked")
    hidden, head = student

    def part(states: Tensor, known: Tensor | None, targets: Tensor) -> Tensor:
        with torch.no_grad():
            expected = None if other is None or known is None else other[1](known)
        return _place_loss(head(states), expected, targets)

    total, some = hidden.new_zeros((), dtype=torch.float32), most_logits(model)
    for start in range(0, len(hidden), some):
        here = slice(start, start + some)
        given = hidden[here], None if other is None else other[0][here], batch.targets[here]
        total = total + (
            checkpoint(part, *given, use_reentrant=False) if hidden.requires_grad else part(*given)
        )
    return total


def _before_head(model: nn.Module, batch: Read) -> tuple[Tensor, Head] | None:
    """(places, width) states before the output layer, and what makes float32 logits of them.

    The model is run once, its output layer on the first place alone; what it did to these logits afterwards
    (caps, scales) is found among the known ways by that place. None where it is none of them.
    """
    kept: list[Tensor] = []

    def first(hidden: Tensor) -> Tensor:
        kept.append(_at(hidden, batch.places)[0])
        return kept[0][None, :1]

    with _head_reads(model, first):
        seen = model(**batch.inputs, use_cache=False).logits[0].float()
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    for after in _afterwards(model):
        if torch.allclose(after(head(kept[0][:1])).float(), seen, rtol=1e-4, atol=1e-4):
            return kept[0], partial(_float_logits, head, after)
    return None


def _float_logits(head: nn.Module, after: Head, states: Tensor) -> Tensor:
    return after(head(states)).float()


def _afterwards(model: nn.Module) -> Iterator[Head]:
    """What models do to logits behind their output layer."""
    config: Any = model.config
    yield lambda logits: logits
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda logits: torch.tanh(logits / cap) * cap
    for name in ("logit_scale", "logits_scale", "lm_head_multiplier"):
        if scale := getattr(config, name, None):
            yield partial(torch.mul, torch.tensor(scale))
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda logits: logits / divisor


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    """(1, places, width) of a flattened batch."""
    return hidden.reshape(-1, hidden.shape[-1])[places][None]


@contextmanager
def _head_reads(model: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the output layer sees what `select` makes of the hidden states."""
    head = model.get_output_embeddings()  # type: ignore[operator]

    def instead(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (select(given[0]), *given[1:])

    with head.register_forward_pre_hook(instead):
        yield
