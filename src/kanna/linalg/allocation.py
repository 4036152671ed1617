"""Which rank each matrix gets, so that together they stay within a parameter budget.

Every matrix offers a menu: its allowed ranks, cheapest first, and last the dense weight itself, whose
error is 0. Ranks that would cost as much as the dense weight are not on the menu.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from torch import Tensor

from kanna.errors import InputError

Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Curve:
    """What each rank of one matrix costs, in parameters and in error.

    Attributes:
        name: unique.
        tails: (r + 1,) the error at rank 0, 1, ..., r, weighted so that matrices can be compared.
        ranks: allowed ranks, ascending.
        cost: parameters stored at each of `ranks`.
        dense_cost: parameters of the dense weight.
    """

    name: str
    tails: Tensor
    ranks: tuple[int, ...]
    cost: tuple[int, ...]
    dense_cost: int


@dataclass(frozen=True)
class _Menu:
    """A curve's choices in ascending order of cost; rank None is the dense weight."""

    name: str
    ranks: tuple[int | None, ...]
    cost: tuple[int, ...]
    error: tuple[float, ...]

    @property
    def dense_cost(self) -> int:
        return self.cost[-1]

    def rank_at(self, pick: int) -> int:
        """The rank of a choice; for a dense one the largest rank below dense, 0 where there is none."""
        return next((rank for rank in reversed(self.ranks[: pick + 1]) if rank is not None), 0)

    def from_rank(self, least: float) -> "_Menu":
        start = next(i for i, rank in enumerate(self.ranks) if rank is None or rank >= least)
        return _Menu(self.name, self.ranks[start:], self.cost[start:], self.error[start:])

    def within(self, share: float) -> int:
        """The dearest choice of at most `share` of the dense cost; the cheapest where there is none."""
        fits = (i for i, cost in enumerate(self.cost) if cost <= share * self.dense_cost)
        return max(fits, default=0)


def uniform(curves: Sequence[Curve], keep: float) -> Ranks:
    """The same share of parameters for every matrix.

    Each takes its largest rank within `keep`; what rounding left over goes, one step at a time, to the
    matrix with the smallest share so far.

    Args:
        keep: parameters kept over those of all matrices, in (0, 1].

    Returns:
        rank by name; None where the matrix stays dense. Never above the budget.

    Raises:
        InputError: keep outside (0, 1], or below what the cheapest choices need.
    """
    if keep == 1.0:
        return dict.fromkeys(curve.name for curve in curves)
    menus, budget = _menus(curves), _budget(curves, keep)
    return _named(menus, _fill_evenly(menus, _even_picks(menus, keep, budget), budget))


def global_(curves: Sequence[Curve], keep: float, floor: float = 0.5) -> Ranks:
    """The ranks of least total error within the budget.

    The Lagrangian optimum (errors and costs on the lower convex hull of each menu), then a greedy fill of
    what the last jump left over. No matrix falls below `floor` times its uniform rank: error curves alone
    starve single matrices, which costs more than the curves say (Swift-SVD, arXiv 2604.01609).

    Args and raises as `uniform`.
    """
    if keep == 1.0:
        return dict.fromkeys(curve.name for curve in curves)
    menus, budget = _menus(curves), _budget(curves, keep)
    even = _even_picks(menus, keep, budget)
    menus = [menu.from_rank(floor * menu.rank_at(pick)) for menu, pick in zip(menus, even, strict=True)]
    return _named(menus, _fill_greedily(menus, _hull_picks(menus, budget), budget))


def least_keep(curves: Sequence[Curve]) -> float:
    """The smallest keep that can be reached."""
    menus = _menus(curves)
    return sum(menu.cost[0] for menu in menus) / sum(menu.dense_cost for menu in menus)


def _named(menus: Sequence[_Menu], picks: Sequence[int]) -> Ranks:
    return {menu.name: menu.ranks[pick] for menu, pick in zip(menus, picks, strict=True)}


def _menus(curves: Sequence[Curve]) -> list[_Menu]:
    if not curves:
        raise InputError("no matrices to allocate ranks to", "select at least one matrix")
    return [_menu(curve) for curve in curves]


def _menu(curve: Curve) -> _Menu:
    errors = curve.tails.tolist()
    worthwhile = [
        (cost, rank) for rank, cost in zip(curve.ranks, curve.cost, strict=True) if cost < curve.dense_cost
    ]
    worthwhile.sort()
    ranks, cost = tuple(rank for _, rank in worthwhile), tuple(cost for cost, _ in worthwhile)
    return _Menu(
        curve.name,
        (*ranks, None),
        (*cost, curve.dense_cost),
        (*(errors[min(r, len(errors) - 1)] for r in ranks), 0.0),
    )


def _budget(curves: Sequence[Curve], keep: float) -> int:
    if not 0.0 < keep <= 1.0:
        raise InputError(
            f"keep must lie in (0, 1], got {keep}", "give the share of parameters to keep, as in 0.8"
        )
    # One part in 1e12 of slack, so that 0.8 * 1000 is 800 and not 799.
    budget = int(keep * sum(curve.dense_cost for curve in curves) * (1 + 1e-12))
    least = least_keep(curves)
    if budget < least * sum(curve.dense_cost for curve in curves):
        reachable = ceil(least * 10_000) / 10_000
        raise InputError(
            f"keep {keep:g} cannot be reached: the smallest ranks allowed keep {reachable:g}",
            f"ask for at least {reachable:g}, or allow smaller ranks with a smaller alignment",
        )
    return budget


def _spent(menus: Sequence[_Menu], picks: Sequence[int]) -> int:
    return sum(menu.cost[pick] for menu, pick in zip(menus, picks, strict=True))


def _even_picks(menus: Sequence[_Menu], keep: float, budget: int) -> list[int]:
    """The dearest common share within the budget: `keep`, or less where small matrices need more."""
    picks = [menu.within(keep) for menu in menus]
    if _spent(menus, picks) <= budget:
        return picks
    low, high = 0.0, keep
    for _ in range(50):
        share = (low + high) / 2
        inside = _spent(menus, [menu.within(share) for menu in menus]) <= budget
        low, high = (share, high) if inside else (low, share)
    return [menu.within(low) for menu in menus]


def _fill_evenly(menus: Sequence[_Menu], picks: Sequence[int], budget: int) -> list[int]:
    filled, left = list(picks), budget - _spent(menus, picks)
    queue = [
        (menu.cost[pick] / menu.dense_cost, i)
        for i, (menu, pick) in enumerate(zip(menus, picks, strict=True))
    ]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        menu, following = menus[i], filled[i] + 1
        if following == len(menu.cost) or menu.cost[following] - menu.cost[filled[i]] > left:
            continue
        left -= menu.cost[following] - menu.cost[filled[i]]
        filled[i] = following
        heapq.heappush(queue, (menu.cost[following] / menu.dense_cost, i))
    return filled


def _hull_picks(menus: Sequence[_Menu], budget: int) -> list[int]:
    """The Lagrangian optimum: hull segments of all menus, steepest first, until one does not fit.

    What a bisection over the multiplier finds, without the bisection: within a hull, slopes only fall.
    """
    segments = sorted(
        (_slope(menu, start, end), i, end)
        for i, menu in enumerate(menus)
        for start, end in pairwise(_lower_hull(menu.cost, menu.error))
    )
    picks, left = [0] * len(menus), budget - _spent(menus, [0] * len(menus))
    for _, i, end in segments:
        price = menus[i].cost[end] - menus[i].cost[picks[i]]
        if price > left:
            break
        picks[i], left = end, left - price
    return picks


def _fill_greedily(menus: Sequence[_Menu], picks: Sequence[int], budget: int) -> list[int]:
    """Repeat the single upgrade of most error saved per parameter among those that still fit."""
    filled, left = list(picks), budget - _spent(menus, picks)
    queue = [upgrade for i, menu in enumerate(menus) for upgrade in _best_upgrade(menu, i, filled[i], left)]
    heapq.heapify(queue)
    while queue:
        _, i, end = heapq.heappop(queue)
        price = menus[i].cost[end] - menus[i].cost[filled[i]]
        if price <= left:
            filled[i], left = end, left - price
        # What is left may have shrunk since the offer was made: ask again, at what fits now.
        for upgrade in _best_upgrade(menus[i], i, filled[i], left):
            heapq.heappush(queue, upgrade)
    return filled


def _best_upgrade(menu: _Menu, index: int, pick: int, left: int) -> list[tuple[float, int, int]]:
    """[(slope, index, choice)] of the steepest step from `pick` that costs at most `left`, or []."""
    steps = [
        (_slope(menu, pick, end), index, end)
        for end in range(pick + 1, len(menu.cost))
        if menu.cost[end] - menu.cost[pick] <= left
    ]
    return [min(steps)] if steps else []


def _slope(menu: _Menu, start: int, end: int) -> float:
    return (menu.error[end] - menu.error[start]) / (menu.cost[end] - menu.cost[start])


def _lower_hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the lower convex hull of points with strictly ascending x (Andrew's monotone chain)."""

    def above(a: int, b: int, c: int) -> bool:
        """Whether point b lies on or above the line from a to c."""
        return (y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a])

    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2 and above(hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull
