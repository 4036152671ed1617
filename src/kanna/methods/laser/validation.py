"""What edits score on the rows of a task: the model stays in memory, states before its blocks are kept."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kanna.calibration.states import States
from kanna.errors import InputError
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.weights import Weights
from kanna.models.inventory import Inventory
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared, make_scorer, score_questions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.answer import accepted
from kanna.tasks.scorers.masked import MaskedScorer
from kanna.tasks.scorers.resumed import Edit, Resumed, Rows, applied
from kanna.tasks.scorers.scorer import CausalScorer, Passes, Replayed


@dataclass(frozen=True)
class Tally:
    """Sums over rows, which add up over parts.

    Args:
        rows: How many.
        value: Sum of the headline metric.
        log_loss: Sum of the right answers' log losses, nats.
        groups: Groups of two rows or more.
        groups_right: Those of which all rows are right.
    """

    rows: int = 0
    value: float = 0.0
    log_loss: float = 0.0
    groups: int = 0
    groups_right: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def accuracy(self) -> float:
        return self.value / self.rows

    @property
    def mean_log_loss(self) -> float:
        return self.log_loss / self.rows

    @property
    def consistency(self) -> float | None:
        return self.groups_right / self.groups if self.groups else None


def tally(score: TaskScore) -> Tally:
    """The sums of one score."""
    rights: dict[str, list[bool]] = defaultdict(list)
    for record in score.records:
        if record.group and record.right is not None:
            rights[record.group].append(record.right)
    several = [some for some in rights.values() if len(some) > 1]
    return Tally(
        rows=len(score.records),
        value=sum(record.values[score.metric] for record in score.records),
        log_loss=sum(record.values["log_loss"] for record in score.records),
        groups=len(several),
        groups_right=sum(map(all, several)),
    )


class EditedTask:
    """Rows of a task, scored under edits.

    Args:
        plan: The evaluation.
        task: Its rows are those to be scored.
        model: In evaluation mode.
        found: Its inventory.
        memory: Bytes of hidden states kept in memory; what is more goes to files.
        directory: Where these files go.
    """

    def __init__(
        self,
        plan: Prepared,
        task: Task,
        model: nn.Module,
        found: Inventory,
        memory: int,
        directory: Path | None = None,
    ) -> None:
        self._plan, self._task, self._model = plan, task, model
        scorer = make_scorer(plan, model)
        if not isinstance(scorer, CausalScorer | MaskedScorer):
            raise InputError(
                f"{plan.name} has a classification head, whose edits are not searched",
                "give a causal or a masked language model",
            )
        self._scorer = scorer
        continuations = [row.choices or accepted(row) for row in task.rows]
        passes = scorer.passes([row.prompt for row in task.rows], continuations)
        ranks = task.rows[0].label is None
        self.resumed = Resumed(model, found, passes, ranks, States(memory, directory))
        self.base_rows: Rows = []

    def base(self, progress: Progress = lambda *_: None, layers: Collection[int] | None = None) -> TaskScore:
        """Score the model as it is; states before `layers` (None: all) are kept for `edited`."""
        self.base_rows = self.resumed.base(progress, layers)
        return self._score(self.base_rows, ())

    def edited(
        self, variants: Sequence[Sequence[Edit]], progress: Progress = lambda *_: None
    ) -> list[TaskScore]:
        """Score each variant, a set of edits put in together; all begin in the same block."""
        found = self.resumed.edited(variants, progress)
        return [self._score(rows, edits) for rows, edits in zip(found, variants, strict=True)]

    @property
    def rows(self) -> Sequence[Row]:
        return self._task.rows

    def close(self) -> None:
        """Forget the hidden states."""
        self.resumed.states.close()

    def _score(self, rows: Rows, edits: Sequence[Edit]) -> TaskScore:
        with applied(self._model, edits):  # for metrics of text that the model writes
            replayed = Replayed(rows, self._scorer)
            return score_questions(self._plan, replayed, self._task, lambda *_: None)


@dataclass
class Journal:
    """Tallies on disk, one a line, so that a search that was killed goes on.

    Args:
        path: Of the file; None keeps nothing.
        known: (candidate, part) -> tally.
    """

    path: Path | None
    known: dict[tuple[str, int], Tally] = field(default_factory=dict)

    @staticmethod
    def open(path: Path | None) -> "Journal":
        """What the file holds; a last line that was cut short counts as missing."""
        journal = Journal(path)
        if path is None or not path.is_file():
            return journal
        written = path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        os.truncate(path, len(whole))
        for line in whole.splitlines():
            data: dict[str, Any] = json.loads(line)
            key = data.pop("candidate"), data.pop("part")
            journal.known[key] = Tally(**data)
        return journal

    def add(self, candidate: str, part: int, found: Tally) -> None:
        self.known[candidate, part] = found
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"candidate": candidate, "part": part, **asdict(found)}) + "\n")
            file.flush()
            os.fsync(file.fileno())


BASE = ""


class Validation:
    """Validation rows in parts; a candidate is scored on as many parts as are asked for, and no part twice.

    Args:
        plan: The evaluation.
        task: Its rows are the validation rows, in the order of the parts.
        sizes: Rows of each part.
        model: In evaluation mode.
        found: Its inventory.
        weights: Of the candidates.
        journal: What is known already.
        memory: Bytes of hidden states in memory.
        directory: Where states go that do not fit.
    """

    def __init__(
        self,
        plan: Prepared,
        task: Task,
        sizes: Sequence[int],
        model: nn.Module,
        found: Inventory,
        weights: Weights,
        journal: Journal,
        memory: int = 2**30,
        directory: Path | None = None,
    ) -> None:
        self._weights, self._journal = weights, journal
        self._make: list[Callable[[], EditedTask]] = []
        start = 0
        for size in sizes:
            rows = task.rows[start : start + size]
            part, share = replace(task, rows=rows), memory * size // len(task.rows)
            self._make.append(lambda part=part, share=share: EditedTask(  # type: ignore[misc]
                plan, part, model, found, share, directory))  # fmt: skip
            start += size
        self._open: dict[int, EditedTask] = {}
        self.sizes = tuple(sizes)

    def base(self, parts: int, progress: Progress = lambda *_: None) -> Tally:
        """The model as it is, on the first parts."""
        for part in range(parts):
            if (BASE, part) not in self._journal.known:
                self._part(part, progress)
        return self._total(BASE, parts)

    def examples(
        self, parts: int, progress: Progress = lambda *_: None
    ) -> list[tuple[Sequence[Row], Passes, Rows]]:
        """Of each of the first parts its rows, how they are run, and what they score as the model is."""
        tasks = [self._part(part, progress) for part in range(parts)]
        return [(one.rows, one.resumed.passes, one.base_rows) for one in tasks]

    def partial(self, one: Candidate) -> Tally:
        """A candidate on the parts it was scored on so far."""
        return sum((tally for (key, _), tally in self._journal.known.items() if key == one.key), Tally())

    def score(
        self, candidates: Sequence[Candidate], parts: int, progress: Progress = lambda *_: None
    ) -> list[Tally]:
        """Each candidate on the first parts."""
        missing = [
            (part, one)
            for part in range(parts)
            for one in candidates
            if (one.key, part) not in self._journal.known
        ]
        groups: dict[tuple[int, int, str], list[Candidate]] = defaultdict(list)
        for part, one in missing:
            groups[part, one.matrix.layer, one.matrix.group].append(one)
        done = 0
        for (part, _, _), some in groups.items():
            progress("search", done, len(missing))
            task = self._part(part, progress)
            for few in self._weights.chunks(some):
                scores = task.edited([self._weights.edits([one]) for one in few])
                for one, score in zip(few, scores, strict=True):
                    self._journal.add(one.key, part, tally(score))
                done += len(few)
        progress("search", done, len(missing))
        return [self._total(one.key, parts) for one in candidates]

    def together(self, candidates: Sequence[Candidate], key: str) -> Tally:
        """Candidates put in together, on all parts."""
        for part in range(len(self.sizes)):
            if (key, part) not in self._journal.known:
                score = self._part(part, lambda *_: None).edited([self._weights.edits(candidates)])[0]
                self._journal.add(key, part, tally(score))
        return self._total(key, len(self.sizes))

    @property
    def layer_tokens(self) -> float:
        """Blocks times tokens computed so far, those of the unedited model included."""
        return sum(task.resumed.effort.layer_tokens for task in self._open.values())

    def close(self) -> None:
        for task in self._open.values():
            task.close()

    def _part(self, part: int, progress: Progress) -> EditedTask:
        """The part with the unedited model's states, computed when first asked for."""
        if part not in self._open:
            task = self._open[part] = self._make[part]()
            found = tally(task.base(progress))
            if (BASE, part) not in self._journal.known:
                self._journal.add(BASE, part, found)
        return self._open[part]

    def _total(self, key: str, parts: int) -> Tally:
        total = Tally()
        for part in range(parts):
            total += self._journal.known[key, part]
        return total


def by_groups(rows: Sequence[Row], places: Sequence[int], seed: int) -> list[list[int]]:
    """Places in groups that stay together, the groups in a random order drawn with `seed`."""
    groups: dict[str, list[int]] = {}
    for place in places:
        groups.setdefault(rows[place].group or f"#{place}", []).append(place)
    ordered = list(groups.values())
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def parts_of(groups: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[list[int]]:
    """Groups dealt out to parts that end where their rows reach each of `sizes`, the rest to a last one."""
    parts: list[list[int]] = [[]]
    filled = 0
    bounds = list(sizes)
    for group in groups:
        if bounds and filled >= bounds[0]:
            bounds.pop(0)
            parts.append([])
        parts[-1] += group
        filled += len(group)
    return parts
