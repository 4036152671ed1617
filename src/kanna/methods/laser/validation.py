"""What candidates score on the validation rows: the model stays in memory, no part is scored twice."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from kanna.methods.laser.space import Candidate
from kanna.methods.laser.weights import Weights
from kanna.models.inventory import Inventory
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared
from kanna.tasks.journal import Journal, Tally, tally
from kanna.tasks.scorers.edited import EditedTask
from kanna.tasks.scorers.likelihood import Passes
from kanna.tasks.scorers.resumed import Rows

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
        return [(task.rows, task.resumed.passes, task.base_rows) for task in tasks]

    def partial(self, candidate: Candidate) -> Tally:
        """The parts that a candidate was scored on so far."""
        tallies = (tally for (key, _), tally in self._journal.known.items() if key == candidate.key)
        return sum(tallies, Tally())

    def score(
        self, candidates: Sequence[Candidate], parts: int, progress: Progress = lambda *_: None
    ) -> list[Tally]:
        """Each candidate on the first parts."""
        missing = [
            (part, candidate)
            for part in range(parts)
            for candidate in candidates
            if (candidate.key, part) not in self._journal.known
        ]
        groups: dict[tuple[int, int, str], list[Candidate]] = defaultdict(list)
        for part, candidate in missing:
            groups[part, candidate.matrix.layer, candidate.matrix.group].append(candidate)
        done = 0
        for (part, _, _), some in groups.items():
            progress("search", done, len(missing))
            task = self._part(part, progress)
            for few in self._weights.chunks(some):
                scores = task.edited([self._weights.edits([candidate]) for candidate in few])
                for candidate, score in zip(few, scores, strict=True):
                    self._journal.add(candidate.key, part, tally(score))
                done += len(few)
        progress("search", done, len(missing))
        return [self._total(candidate.key, parts) for candidate in candidates]

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
            score = tally(task.base(progress))
            if (BASE, part) not in self._journal.known:
                self._journal.add(BASE, part, score)
        return self._open[part]

    def _total(self, key: str, parts: int) -> Tally:
        return sum((self._journal.known[key, part] for part in range(parts)), Tally())
