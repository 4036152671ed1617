"""Log-likelihoods of continuations, each distinct token computed once.

Contexts and continuations form a forest; it is cut into packs of a few hundred tokens, and a pack is one row
for the model, with an attention mask that lets each token see what comes before it in its own sequence, and
its place there as position. So the choices of a question, and prompts that begin alike, share the computation
of what they share, next to nothing is padded, and logits exist only where a target follows.

Not every model takes such masks, or even padding; `planning` finds out which layout is right for a model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.progress import Progress, told
from kanna.tasks.scorers.layout import Layout
from kanna.tasks.tokens.encode import Piece
from kanna.tasks.tokens.forest import Pack
from kanna.tasks.tokens.padded import vocabulary_of

# Float32 logits in memory at a time.
_LOGIT_BYTES = 2**28


@dataclass(frozen=True)
class Likelihood:
    """Of one piece.

    Args:
        sum: Log-probability of the whole target, nats.
        tokens: Targets.
        greedy: Whether each target is the likeliest token given the ones before.
        worst_rank: How many tokens are likelier than a target, at most; None unless asked for.
    """

    sum: float
    tokens: int
    greedy: bool
    worst_rank: int | None = None


@dataclass(frozen=True)
class Group:
    """Packs of one forward pass, and how they lie in it."""

    packs: tuple[Pack, ...]
    layout: Layout


@dataclass(frozen=True)
class Batch:
    """One forward pass, and what is to be read from it.

    Args:
        inputs: Keyword arguments of the model.
        places: (p,) places of the flattened batch whose logits are wanted, each once.
        index: (t,) which of `places` predicts each target.
        tokens: (t,) the targets.
        numbers: Piece of each target; targets of one piece lie together.
    """

    inputs: dict[str, Tensor]
    places: Tensor
    index: Tensor
    tokens: Tensor
    numbers: tuple[int, ...]


class Logits(Protocol):
    """Logits (places, vocabulary) at places of a flattened batch."""

    def __call__(
        self, model: nn.Module, inputs: dict[str, Tensor], places: Tensor, gradients: bool = False, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class Passes:
    """The forward passes that likelihoods need, to be run once or, with an edited model, many times.

    Args:
        batches: Each makes one pass' tensors when called.
        counts: Continuations of each prompt; the batches' pieces are all of them in order.
        logits: How to run the model on them.
    """

    batches: tuple[Callable[[], Batch], ...]
    counts: tuple[int, ...]
    logits: Logits

    def run(self, model: nn.Module, ranks: bool, progress: Progress) -> list[list[Likelihood]]:
        """Likelihoods of each continuation of each prompt."""
        scored: dict[int, Likelihood] = {}
        for make in told(progress, "log-likelihood", self.batches):
            batch = make()
            scored |= read(self.logits(model, batch.inputs, batch.places), batch, ranks)
        return self.rows([scored[piece] for piece in range(sum(self.counts))])

    def rows(self, pieces: Sequence[Likelihood]) -> list[list[Likelihood]]:
        """What belongs to each prompt."""
        ordered = iter(pieces)
        return [[next(ordered) for _ in range(count)] for count in self.counts]


def most_logits(model: nn.Module) -> int:
    """How many places may have logits at a time."""
    return max(1, _LOGIT_BYTES // (4 * (vocabulary_of(model) or 2**15)))


def build(group: Group, pieces: Sequence[Piece], model: nn.Module) -> Batch:
    """The tensors of one forward pass, on the model's device."""
    width = max(map(len, group.packs))
    numbers, places, targets = _wanted(group.packs, pieces, width)
    unique, where = np.unique(places, return_inverse=True)
    device = next(model.parameters()).device
    return Batch(
        inputs=_inputs(group, width, model),
        places=torch.from_numpy(unique).to(device),
        index=torch.from_numpy(where).to(device),
        tokens=torch.tensor(targets, device=device),
        numbers=tuple(numbers),
    )


def read(logits: Tensor, batch: Batch, ranks: bool) -> dict[int, Likelihood]:
    """Piece number -> its likelihood, from logits (places, vocabulary) of a batch.

    Raises:
        InputError: Logits that are not finite.
    """
    index, tokens = batch.index, batch.tokens
    values = logits[index, tokens] - torch.logsumexp(logits, -1)[index]
    greedy = (logits.argmax(-1)[index] == tokens).cpu().numpy()
    check_finite(values)
    worst = None
    if ranks:  # how many tokens are likelier than each target; some rows at a time, to bound memory
        some = zip(index.split(256), tokens.split(256), strict=True)
        worst = torch.cat([(logits[i] > logits[i, t][:, None]).sum(-1) for i, t in some]).cpu().numpy()
    return _collect(batch.numbers, values.double().cpu().numpy(), greedy, worst)


def check_finite(values: Tensor) -> None:
    """Raise InputError unless all log-probabilities are finite."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "the model's logits are not finite", "check the checkpoint, or compute with --dtype float32"
        )


def _wanted(
    batch: Sequence[Pack], pieces: Sequence[Piece], width: int
) -> tuple[list[int], list[int], list[int]]:
    """Of each target: its piece, the place in the flattened batch that predicts it, its token."""
    numbers: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    for row, pack in enumerate(batch):
        for number, path in pack.paths.items():
            piece = pieces[number]
            numbers += [number] * len(piece.target)
            places += [row * width + place for place in path[len(piece.context) - 1 :]]
            targets += piece.target
    return numbers, places, targets


def _inputs(group: Group, width: int, model: nn.Module) -> dict[str, Tensor]:
    """Keyword arguments of the forward pass; padding is on the right."""
    first = next(model.parameters())
    pad = [width - len(pack) for pack in group.packs]
    rows = list(zip(group.packs, pad, strict=True))
    arguments = {"input_ids": torch.tensor([pack.tokens + [0] * n for pack, n in rows])}
    if group.layout is Layout.PADDED:
        arguments["attention_mask"] = torch.tensor([[1] * len(pack) + [0] * n for pack, n in rows])
    elif group.layout is Layout.PACKED:
        arguments["position_ids"] = torch.tensor([pack.depths + [0] * n for pack, n in rows])
        arguments["attention_mask"] = _ancestry(group.packs, width, first.dtype)
    return {name: tensor.to(first.device) for name, tensor in arguments.items()}


def _ancestry(some: Sequence[Pack], width: int, dtype: torch.dtype) -> Tensor:
    """(packs, 1, width, width): what is added to attention, so that each token sees its own sequence only."""
    own = np.broadcast_to(np.eye(width, dtype=bool), (len(some), width, width)).copy()
    for row, pack in enumerate(some):
        own[row, : len(pack), : len(pack)] = pack.ancestors()
    hidden = torch.zeros(own.shape, dtype=dtype)
    return hidden.masked_fill_(~torch.from_numpy(own), torch.finfo(dtype).min)[:, None]


def logits_at(model: nn.Module, inputs: dict[str, Tensor], places: Tensor, gradients: bool = False) -> Tensor:
    """(places, vocabulary) float32: logits at places of the flattened batch only."""
    with torch.set_grad_enabled(gradients), only_at(model, places):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0].float()


@contextmanager
def only_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Within the block, the output layer sees only these places of the flattened batch, as one row.

    What models do to logits afterwards (caps, scales) goes element by element, so it still holds.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]

    def select(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = given[0]
        return (hidden.reshape(-1, hidden.shape[-1])[places][None], *given[1:])

    with head.register_forward_pre_hook(select):
        yield


def _collect(numbers: Sequence[int], values: Any, greedy: Any, worst: Any) -> dict[int, Likelihood]:
    """Targets of a piece lie together."""
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    scored = {}
    for start, end in pairwise(bounds):
        rank = None if worst is None else int(worst[start:end].max())
        total = float(values[start:end].sum())
        scored[numbers[start]] = Likelihood(total, end - start, bool(greedy[start:end].all()), rank)
    return scored
