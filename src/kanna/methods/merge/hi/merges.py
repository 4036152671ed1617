"""The ground of real models: states are merged in memory, blocks changed in models that go on from there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from kanna.methods.merge.hi.blocks import Block
from kanna.methods.merge.hi.recipes import NO_ELECTION, recipe_of
from kanna.methods.merge.hi.state import State, nothing
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.plan import DEFAULT_MEMORY, MergePlan, planned
from kanna.methods.merge.reading import read_recipe
from kanna.methods.merge.tuning.evaluating import Evaluator, Subject
from kanna.methods.merge.tuning.expert_tasks import ExpertTask
from kanna.methods.merge.tuning.held import model_of, tensors_of
from kanna.methods.merge.tuning.samples import Sample, Scale, sample
from kanna.models.inventory import inventory
from kanna.models.names import FileNames
from kanna.tasks.scorers.classifier import classifies
from kanna.tasks.scorers.edited import EditedTask
from kanna.tasks.scorers.resumed import Edit

_STATES = 2**31


@dataclass(frozen=True)
class Mixing:
    """How states become merges.

    Args:
        base: As recipes name it.
        models: Experts, likewise.
        blocks: Of the model.
        consensus: See `recipe_of`.
        scope: Over what entries are ranked: those of a tensor, or of the model.
        dtype: Of the output; None for the widest of the models.
        inputs: All models, open; the base first.
        max_memory: Bytes that merging may take.
    """

    base: str
    models: tuple[str, ...]
    blocks: tuple[Block, ...]
    inputs: Inputs
    consensus: str = NO_ELECTION
    scope: str = "tensor"
    dtype: str | None = None
    max_memory: int = DEFAULT_MEMORY

    @property
    def alike(self) -> bool:
        """Whether no model could make the output wider than it is without it."""
        return len({one.dtype for model in self.inputs.models for one in model.tensors.values()}) == 1

    def recipe(self, state: State) -> dict[str, object]:
        return recipe_of(
            state, self.base, self.models, self.blocks,
            consensus=self.consensus, scope=self.scope, dtype=self.dtype,
            all_listed=not self.alike,
        )  # fmt: skip

    def plan(self, state: State) -> MergePlan:
        """What `kanna merge run` of the state's recipe does."""
        recipe = read_recipe(self.recipe(state))
        wanted = [0, *(1 + self.models.index(name) for name in recipe.models if name != self.base)]
        return planned(recipe, None, self.max_memory, 0, None, self.inputs.only(wanted))

    def tensors(self, state: State, names: Collection[str] | None = None) -> dict[str, Tensor]:
        return tensors_of(self.plan(state), names)


class Maker(Protocol):
    """How states become models.

    Args:
        blocks: Of these models.
    """

    @property
    def blocks(self) -> tuple[Block, ...]: ...

    def tensors(self, state: State, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors of a state, as files would hold them.

        Args:
            names: Which; None for all.
        """
        ...


@dataclass
class Merges:
    """See `Ground`.

    Args:
        maker: How states become models.
        tasks: Of the experts, in their order.
        scales: Of the tasks.
        subject: A merge, for its directory and tokenizer.
        evaluator: Who scores, and keeps what was scored.
        directory: Where hidden states go that do not fit in memory; None for a folder of the system's.
        tell: Called behind each evaluation.
    """

    maker: Maker
    tasks: tuple[ExpertTask, ...]
    scales: tuple[Scale, ...]
    subject: Subject
    evaluator: Evaluator
    directory: Path | None = None
    naive: bool = False
    layer_tokens: float = 0.0
    tell: Callable[[], None] = lambda: None
    _held: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.maker.blocks)

    def score(self, state: State, task: int) -> Sample:
        known, one = self.evaluator.notebook.known, self.tasks[task]
        if (state.key, one.name) not in known:
            self.evaluator.score(state.key, self.subject, self._model(state), [one])
            self.tell()
        return known[state.key, one.name]

    def deletions(self, state: State, task: int) -> list[Sample]:
        count = len(self.maker.blocks)
        (found,) = self._patched(state, [nothing(count, len(self.tasks), state.share)], task)
        return found

    def additions(self, states: Sequence[State], task: int) -> list[list[Sample]]:
        return self._patched(nothing(len(self.maker.blocks), len(self.tasks)), states, task)

    def _patched(self, anchor: State, others: Sequence[State], task: int) -> list[list[Sample]]:
        """For each other state and each block, the anchor with that state in the block."""
        variants = [[_mixed(anchor, other, block) for block in range(len(anchor.rows))] for other in others]
        name = self.tasks[task].name
        known = self.evaluator.notebook.known
        missing = {
            block: [number for number, row in enumerate(variants) if (row[block].key, name) not in known]
            for block in range(len(anchor.rows))
        }
        layered = any(block.layers and missing[number] for number, block in enumerate(self.maker.blocks))
        if not self.naive and layered and not classifies(dict(self.subject.plan.config)):
            self._resumed(anchor, others, variants, missing, task)
        return [[self.score(state, task) for state in row] for row in variants]

    def _resumed(
        self,
        anchor: State,
        others: Sequence[State],
        variants: Sequence[Sequence[State]],
        missing: Mapping[int, Sequence[int]],
        task: int,
    ) -> None:
        """Score what is missing in layers, from the states before each on; the rest is left to `score`."""
        one, model = self.tasks[task], self._model(anchor)
        prepared = self.subject.prepared([one.calibration], self.evaluator.options)
        (asked,) = prepared.tasks
        names = FileNames.of(model, [tensor.spec.name for tensor in self.subject.plan.tensors])
        places = {file: parameter for parameter, file in names.stored.items()}
        edited = EditedTask(prepared, asked, model, inventory(model), _STATES, self.directory)
        try:
            edited.base()
            for number, block in enumerate(self.maker.blocks):
                wanted = missing[number]
                if not wanted or not block.layers or any(name not in places for name in block.tensors):
                    continue
                edits = [self.edits(others[index], block, places) for index in wanted]
                for index, scored in zip(wanted, edited.edited(edits), strict=True):
                    self.evaluator.notebook.add(variants[index][number].key, one.name, sample(scored))
                    self.evaluator.done += 1
                    self.tell()
        finally:
            self.layer_tokens += edited.resumed.effort.layer_tokens
            edited.close()

    def edits(self, state: State, block: Block, places: Mapping[str, str]) -> list[Edit]:
        """What a block of a state holds, for a model whose parameters have these names."""
        layers = dict(zip(block.filters, block.layers, strict=True))
        edits = []
        for name, value in self.maker.tensors(state, block.tensors).items():
            path, _, leaf = places[name].rpartition(".")
            layer = next(number for part, number in layers.items() if part in name)
            edits.append(Edit(path, leaf, value, layer))
        return edits

    def _model(self, state: State) -> nn.Module:
        """In memory; the last one is kept, which is often asked for again."""
        if state.key not in self._held:
            self._held.clear()
            tensors = self.maker.tensors(state)
            self._held[state.key] = model_of(self.subject.shell.directory, tensors, self.evaluator.options)
        return self._held[state.key]


def _mixed(anchor: State, other: State, block: int) -> State:
    """The anchor with another state in one block; what is the base everywhere has any share."""
    empty = nothing(len(anchor.rows), len(anchor.rows[0])).key
    share = other.share if anchor.key == empty else anchor.share
    return replace(anchor, share=share).replaced(block, other.rows[block])
