"""Which bases an event keeps, so that a number of parameters is met."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Of one matrix.

    Args:
        m: Outputs.
        n: Inputs.
        extra: New bases, which are never dropped.
    """

    m: int
    n: int
    extra: int

    @property
    def dense(self) -> int:
        return self.m * self.n

    def as_bases(self, kept: Tensor | int) -> Tensor | int:
        """Parameters of factors of a rank of `kept` bases and the extra ones."""
        return (kept + self.extra) * (self.m + self.n)

    def stored(self, kept: int) -> int:
        """The same as it will be stored: dense where factors would not be smaller."""
        return min(self.dense, int(self.as_bases(kept)))

    def stays_dense(self, kept: int) -> bool:
        return int(self.as_bases(kept)) >= self.dense


Scores = Mapping[str, Tensor]
Sizes = Mapping[str, Size]


def target_at(event: int, events: int, first: float, last: float) -> float:
    """Parameters after event n of N: P_0 (P_N / P_0)^(n / N)."""
    return float(first * (last / first) ** (event / events))


def least(sizes: Sizes) -> int:
    """Parameters of one basis and the extra ones of each matrix: nothing smaller can be reached."""
    return sum(size.stored(1) for size in sizes.values())


def kept_by_worth(
    scores: Scores, sizes: Sizes, trained: float, stored: float, last: bool
) -> dict[str, Tensor]:
    """Matrix -> places of the bases that stay, ascending: all ranked together by worth per parameter.

    Args:
        scores: (k,) worth of the bases of each matrix.
        trained: Parameters that the bases may have after an event before the last.
        stored: Parameters that the model may have at the end, matrices that stay dense counted so. No event
            goes below it; the last one meets it as nearly as whole bases allow.
        last: Whether this is the last event.
    """
    order = _drop_order(scores, sizes)
    as_bases = sum(int(sizes[name].as_bases(len(score))) for name, score in scores.items())
    as_stored = sum(sizes[name].stored(len(score)) for name, score in scores.items())
    at_end = _nearest(as_stored - order.stored.cumsum(0), as_stored, stored)
    dropped = at_end if last else min(at_end, _nearest(as_bases - order.trained.cumsum(0), as_bases, trained))
    gone = torch.zeros(len(order.matrix), dtype=torch.bool)
    gone[:dropped] = True
    kept = {}
    for number, (name, score) in enumerate(scores.items()):
        places = order.place[(order.matrix == number) & gone]
        stays = torch.ones(len(score), dtype=torch.bool)
        stays[places] = False
        kept[name] = stays.nonzero().flatten()
        if last and sizes[name].stays_dense(len(kept[name])):
            kept[name] = torch.arange(len(score))  # it is stored dense: nothing is gained by dropping
    return kept


@dataclass(frozen=True)
class _Order:
    """Bases in the order in which they are dropped; the best of each matrix is not among them.

    Args:
        matrix: Number of each one's matrix.
        place: Its place there.
        trained: Parameters that go with it while bases are trained.
        stored: Parameters that go with it from what is stored.
    """

    matrix: Tensor
    place: Tensor
    trained: Tensor
    stored: Tensor


def _drop_order(scores: Scores, sizes: Sizes) -> _Order:
    parts = []
    for number, (name, score) in enumerate(scores.items()):
        size, places = sizes[name], score.cpu().argsort(stable=True)[:-1]
        left = torch.arange(len(score), 0, -1)
        costs = size.as_bases(left)
        assert isinstance(costs, Tensor)
        worth = score.cpu()[places] / (size.m + size.n)
        stored = -costs.clamp(max=size.dense).diff()
        trained = torch.full_like(stored, size.m + size.n)
        parts.append((worth, torch.full_like(places, number), places, trained, stored))
    worth, matrix, place, trained, stored = (torch.cat(column) for column in zip(*parts, strict=True))
    order = worth.argsort(stable=True)
    return _Order(matrix[order], place[order], trained[order], stored[order])


def _nearest(after: Tensor, now: int, wanted: float) -> int:
    """How many to drop so that what is left is nearest to `wanted`; the fewest of equals."""
    left = torch.cat([torch.tensor([now]), after]).double()
    return int((left - wanted).abs().argmin())


def kept_by_share(
    sigmas: Scores, sizes: Sizes, trained: float, stored: float, last: bool
) -> dict[str, Tensor]:
    """Matrix -> places of the bases that stay: of each matrix the largest that hold one share of its sum.

    The paper's rule inside an event; the share is what is found by bisection. Arguments as `kept_by_worth`.
    """

    def kept(share: float) -> dict[str, Tensor]:
        return {name: _prefix(sigma.cpu(), share) for name, sigma in sigmas.items()}

    def stored_of(chosen: Mapping[str, Tensor]) -> int:
        return sum(sizes[name].stored(len(places)) for name, places in chosen.items())

    def trained_of(chosen: Mapping[str, Tensor]) -> int:
        return sum(int(sizes[name].as_bases(len(places))) for name, places in chosen.items())

    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chosen = kept(share)
        enough = stored_of(chosen) >= stored and (last or trained_of(chosen) >= trained)
        low, high = (low, share) if enough else (share, high)
    sides = kept(low), kept(high)
    if not last and stored_of(sides[0]) < stored:
        return sides[1]
    wanted, count = (stored, stored_of) if last else (trained, trained_of)
    return min(sides, key=lambda chosen: abs(count(chosen) - wanted))


def kept_by_sigma(
    sigmas: Scores, held: Mapping[str, float], share: float
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Matrix -> places of the largest weights that hold a share of what the matrix had before any event.

    An event of the paper keeps a share k of the sum of weights, so that n events keep k^n; but whole bases
    keep more, and on small matrices its code hardly drops any. Here what was kept too much is carried on: the
    share of this event is `share` over what is really held.

    Args:
        held: Matrix -> product of the shares that earlier events really kept.
        share: Of all events so far together.

    Returns:
        The places, and `held` after this event.
    """
    kept, after = {}, {}
    for name, sigma in sigmas.items():
        places = _prefix(sigma.cpu(), min(1.0, share / held[name]))
        kept[name] = places
        after[name] = held[name] * float(sigma.cpu()[places].double().sum() / sigma.double().sum())
    return kept, after


def _prefix(sigma: Tensor, share: float) -> Tensor:
    """Places, ascending, of the largest values whose sum reaches a share of all; at least one."""
    order = sigma.argsort(descending=True, stable=True)
    sums = sigma[order].double().cumsum(0)
    count = int((sums < share * sums[-1] * (1 - 1e-12)).sum()) + 1
    kept: Tensor = order[: min(count, len(sigma))].sort().values
    return kept
