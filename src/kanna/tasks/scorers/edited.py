"""Rows of a task, scored under edits of the model: the states before its blocks are kept."""

from collections.abc import Collection, Sequence
from pathlib import Path

from torch import nn

from kanna.calibration.states import States
from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared, make_scorer, score_questions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.resumed import Edit, Resumed, Rows, applied
from kanna.tasks.scorers.scorer import Replayed, TokenScorer


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
        scorer = make_scorer(plan, model, task)
        if not isinstance(scorer, TokenScorer):
            raise InputError(
                f"{plan.name} has a classification head, whose edits are not searched",
                "give a causal or a masked language model",
            )
        self._scorer = scorer
        continuations = [row.choices or row.accepted for row in task.rows]
        passes = scorer.passes([row.asked for row in task.rows], continuations)
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
        scored = self.resumed.edited(variants, progress)
        return [self._score(rows, edits) for rows, edits in zip(scored, variants, strict=True)]

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
