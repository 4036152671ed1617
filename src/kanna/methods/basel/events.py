"""Part 1 between its steps: gradients are averaged, and at each event bases are dropped for good."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanna.methods.basel.bases import Bases, Decomposed
from kanna.methods.basel.budget import Sizes, kept_by_share, kept_by_sigma, kept_by_worth, target_at
from kanna.methods.basel.importance import Averages, curvatures
from kanna.methods.basel.penalty import add_penalty, sums_of
from kanna.training.optimiser import Optimiser


@dataclass(frozen=True)
class Schedule:
    """When bases are dropped, and how many are left.

    Args:
        first: Steps before the first event.
        steps: Steps of part 1.
        events: How many; exactly so many take place.
        trained: Parameters of all bases at first.
        stored: Parameters at the end.
        sigma: Share of the sum of weights at the end, in place of `stored`.
    """

    first: int
    steps: int
    events: int
    trained: int
    stored: int
    sigma: float | None = None

    def event_after(self, step: int) -> int | None:
        """Number of the event behind a step, from 1; None where there is none."""
        span = self.steps - self.first
        for event in range(1, self.events + 1):
            if step + 1 == self.first + span * (event - 1) // self.events:
                return event
        return None

    @property
    def counted(self) -> str:
        """Events in words: `1 event`, `12 events`."""
        return "1 event" if self.events == 1 else f"{self.events:,} events"

    @property
    def last_step(self) -> int:
        """Steps done when the last event takes place."""
        return self.first + (self.steps - self.first) * (self.events - 1) // self.events


@dataclass
class Events:
    """Drops bases of the matrices that are trained; see `training.loop.Between`.

    Args:
        matrices: By name.
        sizes: Of each.
        schedule: When.
        averages: What bases are worth.
        again: Gives all bases of a matrix once more, for a state that had more of them.
        seed: Of what is drawn at an event.
        l1: Of the penalty on weights.
        kept: Matrix -> places of its bases among all it had.
        history: (steps done, bases by matrix) after each event.
        held: Matrix -> share of its sum of weights that events have kept, for `Schedule.sigma`.
        curved: Bases whose curvature events measured, and of how many of them it was below 0.
    """

    matrices: Mapping[str, Bases]
    sizes: Sizes
    schedule: Schedule
    averages: Averages
    again: Callable[[str], Decomposed]
    seed: int = 0
    l1: float = 0.0
    kept: dict[str, Tensor] = field(init=False)
    history: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    held: dict[str, float] = field(init=False)
    curved: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.kept = {name: torch.arange(len(bases.weight)) for name, bases in self.matrices.items()}
        self.held = dict.fromkeys(self.matrices, 1.0)
        self._first = sums_of(self.matrices)
        self._probe: Callable[[int], object] = lambda _: None

    def begin(self, gradients: Callable[[int], object]) -> None:
        self._probe = gradients

    def gradients(self, step: int) -> None:
        self.averages.add(self.matrices)
        if self.l1:
            add_penalty(self.matrices, self.l1, self._first)

    def after(self, step: int, optimiser: Optimiser) -> None:
        event = self.schedule.event_after(step)
        if event is None:
            return
        chosen = self._chosen(event)
        for name, places in chosen.items():
            bases = self.matrices[name]
            if len(places) < len(bases.weight):
                optimiser.cut(f"{name}:weight", places)
                here = places.to(bases.left.device)
                bases.hold(Decomposed(bases.left, bases.right).keep(here))
                self.kept[name] = self.kept[name][places]
        self.averages.clear()
        self.history.append((step + 1, {name: len(places) for name, places in self.kept.items()}))

    def _chosen(self, event: int) -> dict[str, Tensor]:
        """Matrix -> places, among the bases it has, of those that stay."""
        plan, scores = self.schedule, self.averages.scores(self.matrices, self._curvatures(event))
        if plan.sigma is not None:
            share = plan.sigma ** (event / plan.events)
            chosen, self.held = kept_by_sigma(scores, self.held, share)
            return chosen
        wanted = target_at(event, plan.events, plan.trained, plan.stored)
        choose = kept_by_share if self.averages.importance == "sigma" else kept_by_worth
        return choose(scores, self.sizes, wanted, plan.stored, event == plan.events)

    def _curvatures(self, event: int) -> dict[str, Tensor] | None:
        """Of all weights on the batch of the first step, which is the same at every event; of bsi alone."""
        if self.averages.importance != "bsi":
            return None
        generator = torch.Generator().manual_seed((self.seed + event) % 2**64)
        found = curvatures(self.matrices, lambda: self._probe(0), generator)
        looked, below = self.curved
        looked += sum(len(values) for values in found.values())
        self.curved = looked, below + sum(int((values < 0).sum()) for values in found.values())
        return found

    @property
    def share(self) -> float:
        """Of the matrices' parameters, what would be stored now."""
        stored = sum(self.sizes[name].stored(len(places)) for name, places in self.kept.items())
        return stored / sum(self.sizes[name].dense for name in self.kept)

    def told(self) -> str:
        """How far it is."""
        return f"event {len(self.history)}/{self.schedule.events}, {self.share:.1%} kept"

    def tensors(self) -> Mapping[str, Tensor]:
        found = {f"kept:{name}": places for name, places in self.kept.items()}
        found |= {f"sum:{name}": value for name, value in self.averages.sums.items()}
        counts = [[done, *ranks.values()] for done, ranks in self.history]
        past = torch.tensor(counts, dtype=torch.int64).reshape(len(counts), len(self.matrices) + 1)
        held = torch.tensor([self.held[name] for name in self.matrices], dtype=torch.float64)
        counted = {"steps": torch.tensor(self.averages.steps), "curved": torch.tensor(self.curved)}
        return {**found, **counted, "history": past, "held": held}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, bases in self.matrices.items():
            places = tensors[f"kept:{name}"]
            if not torch.equal(places, self.kept[name]):
                bases.hold(self.again(name).keep(places))
                self.kept[name] = places
        device = next(iter(self.matrices.values())).left.device
        self.averages.sums = {
            name.removeprefix("sum:"): value.to(device)
            for name, value in tensors.items()
            if name.startswith("sum:")
        }
        self.averages.steps = int(tensors["steps"])
        looked, below = tensors["curved"].tolist()
        self.curved = looked, below
        self.held = dict(zip(self.matrices, tensors["held"].tolist(), strict=True))
        self.history = [
            (row[0], dict(zip(self.matrices, row[1:], strict=True))) for row in tensors["history"].tolist()
        ]
