"""Which pieces share a forward pass: as much as the model can be shown to compute right, and no more.

Pieces whose lengths a model treats alike are a lot. A lot is packed, if its hardest packs give each piece
what it gets alone, as a single row without padding or mask; else its rows are padded, if that holds for them;
else rows of equal length go together, or each goes alone.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from kanna.progress import Progress
from kanna.tasks.scorers.layout import Found, Layout, Seen, accepted, agree, layout_of
from kanna.tasks.scorers.likelihood import Batch, Group, Likelihood, Passes, build, logits_at, most_logits
from kanna.tasks.tokens.encode import Piece
from kanna.tasks.tokens.forest import Pack, packs, singles
from kanna.tasks.tokens.lots import Lot, bounds_of, lots
from kanna.tasks.tokens.padded import batches, fit

# Long enough for efficient products, short enough that attention among strangers stays cheap.
PACK_TOKENS = 256
# A pack stands for one that is worse when it reaches more than this share of its measure.
_ENOUGH = 0.5
_NOTES = {
    Layout.PADDED: "shared prefixes were computed again for every row",
    Layout.EQUAL: "only rows of equal length were computed together, since padding changes what it computes",
    Layout.SINGLE: "every row was computed by itself, since others beside it change what it computes",
}


@dataclass(frozen=True)
class BatchPlan:
    """Which packs go together.

    Args:
        batches: Packs of each forward pass.
        forward_tokens: Tokens of all passes, padding included.
        naive_tokens: Tokens of one unpadded row per piece.
        packed: Whether shared prefixes are there once.
        notes: Where rows are computed apart that were to share more.
    """

    batches: tuple[Group, ...]
    forward_tokens: int
    naive_tokens: int
    packed: bool
    notes: tuple[str, ...] = ()

    def passes(self, model: nn.Module, pieces: Sequence[Piece], counts: tuple[int, ...]) -> Passes:
        """How to run them; `counts` of the pieces belong to each prompt."""
        made = tuple(partial(build, group, pieces, model) for group in self.batches)
        return Passes(made, counts, logits_at)


@dataclass(frozen=True)
class Likelihoods(BatchPlan):
    """Of all pieces, and how they were computed.

    Args:
        found: One per piece, in their order.
    """

    found: tuple[Likelihood, ...] = ()


def likelihoods(
    model: nn.Module,
    pieces: Sequence[Piece],
    *,
    batch_tokens: int = 2048,
    ranks: bool = False,
    share: bool = True,
    progress: Progress = lambda *_: None,
) -> Likelihoods:
    """Score every piece with a causal model.

    Args:
        batch_tokens: Tokens per forward pass, about.
        ranks: Also find `worst_rank`.
        share: False computes every distinct piece as a row of its own.

    Raises:
        InputError: Logits that are not finite.
    """
    plan = plan_batches(model, pieces, batch_tokens, share)
    (scored,) = plan.passes(model, pieces, (len(pieces),)).run(model, ranks, progress)
    return Likelihoods(**vars(plan), found=tuple(scored))


def plan_batches(model: nn.Module, pieces: Sequence[Piece], batch_tokens: int, share: bool) -> BatchPlan:
    """Packs of like length together, about `batch_tokens` at a time."""
    sequences = [piece.inputs for piece in pieces]
    found = lots(list(map(len, sequences)), bounds_of(model))
    trials = [_Trial.of(model, pieces, lot, batch_tokens) for lot in found]
    layouts = [trial.layout(share) for trial in trials]
    groups = [group for trial, layout in zip(trials, layouts, strict=True) for group in trial.groups(layout)]
    return BatchPlan(
        batches=tuple(groups),
        forward_tokens=sum(len(group.packs) * max(map(len, group.packs)) for group in groups),
        naive_tokens=sum(map(len, sequences)),
        packed=bool(layouts) and all(layout is Layout.PACKED for layout in layouts),
        notes=tuple(_notes(found, layouts, share)),
    )


def _notes(found: Sequence[Lot], layouts: Sequence[Layout], share: bool) -> Iterator[str]:
    """What the reader must know of lots that share less than was asked for."""
    wanted = Layout.PACKED if share else Layout.PADDED
    less = [(lot, layout) for lot, layout in zip(found, layouts, strict=True) if layout is not wanted]
    for lot, layout in less:
        if layout is Layout.PACKED:
            continue
        some = len(set(layouts)) > 1 and lot.over
        which = f"rows of more than {lot.over:,} tokens" if some else "this model takes no packed rows"
        if layout is not Layout.PADDED and not some:
            which = "this model computes rows otherwise when others stand beside them"
        yield f"{which}: {_NOTES[layout]}"


@dataclass(frozen=True)
class _Trial:
    """Pieces of one lot, to be computed in several ways.

    Args:
        made: Their packs.
        rows: One pack for each of their distinct inputs.
        lot: Of the pieces.
        batch_tokens: Tokens per forward pass, about.
    """

    model: nn.Module
    pieces: Sequence[Piece]
    made: tuple[Pack, ...]
    rows: tuple[Pack, ...]
    lot: Lot
    batch_tokens: int

    @classmethod
    def of(cls, model: nn.Module, pieces: Sequence[Piece], lot: Lot, batch_tokens: int) -> "_Trial":
        sequences = [piece.inputs for piece in pieces]
        made = tuple(packs(sequences, PACK_TOKENS, lot.rows))
        return cls(model, pieces, made, tuple(singles(sequences, lot.rows)), lot, batch_tokens)

    def groups(self, layout: Layout) -> Iterator[Group]:
        """The forward passes in a layout."""
        for some in self._passes(self.made if layout is Layout.PACKED else self.rows, layout):
            yield Group(some, layout)

    def layout(self, share: bool) -> Layout:
        """The most shared one that is right; one row by itself is."""
        alone = cache(partial(self._alone))
        if share and not self.lot.windowed and self._packs_hold(alone):
            return Layout.PACKED
        return layout_of(self.model, list(map(len, self.rows)), self._together, alone, self._fits)

    def _packs_hold(self, alone: Callable[[int], Found]) -> bool:
        row_of = {number: row for row, single in enumerate(self.rows) for number in single.paths}
        for some in self._tried():
            wanted: dict[Hashable, Seen] = {}
            for row in sorted({row_of[number] for pack in some for number in _hard(pack)}):
                wanted |= alone(row)
            if not agree(wanted, accepted(partial(self._seen, some, Layout.PACKED)), self.model):
                return False
        return True

    def _tried(self) -> list[tuple[Pack, ...]]:
        """Packs that stand for all, and two that share a forward pass if any will."""
        tried = list(self._passes(_hardest(self.made), Layout.PACKED))
        together = [some for some in self._passes(self.made, Layout.PACKED) if len(some) > 1]
        if not together or any(len(some) > 1 for some in tried):
            return tried
        pair = together[-1][-2:]
        return [pair, *(some for some in tried if some[0] not in pair)]

    def _fits(self, rows: Sequence[int]) -> bool:
        some = [self.rows[row] for row in rows]
        wanted = self._wanted(some)
        return fit(range(len(some)), list(map(len, some)), wanted, self.batch_tokens, most_logits(self.model))

    def _wanted(self, some: Sequence[Pack]) -> list[int]:
        """Places of each pack that need logits."""
        return [sum(len(self.pieces[number].target) for number in pack.paths) for pack in some]

    def _passes(self, some: Sequence[Pack], layout: Layout) -> Iterator[tuple[Pack, ...]]:
        targets = self._wanted(some)
        most = 1 if layout is Layout.SINGLE else self.batch_tokens
        equal = layout is Layout.EQUAL
        for group in batches(list(map(len, some)), targets, most, most_logits(self.model), equal):
            yield tuple(some[i] for i in group)

    def _together(self, rows: Sequence[int], layout: Layout) -> Found:
        return self._seen([self.rows[row] for row in rows], layout)

    def _alone(self, row: int) -> Found:
        return self._seen([self.rows[row]], Layout.SINGLE)

    def _seen(self, some: Sequence[Pack], layout: Layout) -> dict[Hashable, Seen]:
        """Of each piece in some packs, its targets."""
        batch = build(Group(tuple(some), layout), self.pieces, self.model)
        logits = logits_at(self.model, batch.inputs, batch.places)
        return dict(_targets(logits, batch))


def _targets(logits: Tensor, batch: Batch) -> Iterator[tuple[int, Seen]]:
    whole = torch.logsumexp(logits, -1)[batch.index]
    own = logits[batch.index, batch.tokens]
    size = torch.maximum(whole.abs(), own.abs())
    numbers = torch.tensor(batch.numbers, device=own.device)
    for number in dict.fromkeys(batch.numbers):
        mine = numbers == number
        yield number, Seen((own - whole)[mine], float(size[mine].max()))


def _hardest(made: Sequence[Pack]) -> list[Pack]:
    """Packs where most can go wrong: with the longest piece, and if those lack them, with most else that can.

    That is tokens, a wide gap between neighbours of a piece, and strangers.
    """
    chosen = [max(made, key=lambda pack: (max(map(len, pack.paths.values())), len(pack)))]
    for measure in (len, _widest, _strangers):
        worst = max(made, key=lambda pack: (measure(pack), len(pack)))
        if max(map(measure, chosen)) <= _ENOUGH * measure(worst):
            chosen.append(worst)
    return chosen


def _widest(pack: Pack) -> int:
    return max(map(_gap, pack.paths.values()))


def _strangers(pack: Pack) -> int:
    """Two where it has any, else one: whether there are any is what matters."""
    return min(pack.parents.count(-1), 2)


def _hard(pack: Pack) -> set[int]:
    """Pieces of a pack where most can go wrong: the longest, the last, the one in most pieces."""
    longest = max(pack.paths, key=lambda number: len(pack.paths[number]))
    torn = max(pack.paths, key=lambda number: _gap(pack.paths[number]))
    return {longest, torn, list(pack.paths)[-1]}


def _gap(path: Sequence[int]) -> int:
    """How far apart the places of neighbouring tokens are, at most."""
    return max((after - before for before, after in pairwise(path)), default=1)
