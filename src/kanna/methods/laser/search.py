"""The two searches: all candidates on all rows, or those that a gradient points at, on more and more rows."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kanna.linalg.decomposition import decompose, singular_gradient
from kanna.linalg.reduction import row_blocks
from kanna.methods.laser.choose import Trial
from kanna.methods.laser.gradient import loss_weights, predicted_changes, weight_gradients
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import Tally, Validation
from kanna.methods.laser.weights import Weights
from kanna.models.matrix import Matrix
from kanna.search.halving import halve

Progress = Callable[[str, int, int], None]
# Below it, a round of halving would throw dice.
_FEWEST_ROWS = 8
# Candidates of one matrix in a shortlist: neighbours in rho score alike.
_PER_MATRIX = 4


@dataclass(frozen=True)
class Budget:
    """How much is tried.

    Args:
        fast: Examples for the gradient; None tries every candidate on every row.
        shortlist: Candidates that the gradient leaves.
        finalists: Candidates that meet on all validation rows.
        max_evaluations: Candidates tried at most; the first ones of the space.
        max_seconds: No further block is begun after so many; what was not reached is reported.
    """

    fast: int | None = 100
    shortlist: int = 16
    finalists: int = 4
    max_evaluations: int | None = None
    max_seconds: float | None = None

    def part_sizes(self) -> list[int]:
        """Rows at which parts of the validation set end, before the last one."""
        if self.fast is None:
            return []
        first = max(_FEWEST_ROWS, self.fast // 4)
        found = [first]
        while found[-1] * 2 < self.fast:
            found.append(found[-1] * 2)
        return [*found, self.fast] if found[-1] < self.fast else found


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        trials: Candidates with their scores; those with all rows may be chosen.
        predicted: Candidate key -> change of the loss that the gradient predicts; empty without one.
        left_out: Candidates that the budget did not reach.
        gradient_tokens: Tokens of the backward pass.
    """

    trials: tuple[Trial, ...]
    predicted: Mapping[str, float]
    left_out: int
    gradient_tokens: int = 0


def exhaustive(
    validation: Validation, candidates: Sequence[Candidate], budget: Budget, progress: Progress
) -> Found:
    """Every candidate on every row, the most promising blocks first."""
    allowed = list(candidates[: budget.max_evaluations])
    parts = len(validation.sizes)
    started = time.monotonic()
    groups: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for one in allowed:
        groups[one.matrix.group, one.matrix.layer].append(one)
    trials: list[Trial] = []
    for some in groups.values():
        late = budget.max_seconds is not None and time.monotonic() - started > budget.max_seconds
        if late and trials:
            break
        progress("search", len(trials), len(allowed))
        tallies = validation.score(some, parts)
        trials += [trial(one, found) for one, found in zip(some, tallies, strict=True)]
    progress("search", len(trials), len(allowed))
    return Found(tuple(trials), {}, len(candidates) - len(trials))


def fast(
    validation: Validation,
    candidates: Sequence[Candidate],
    budget: Budget,
    model: nn.Module,
    weights: Weights,
    progress: Progress,
) -> Found:
    """Those that the singular-value gradient points at, by successive halving; finalists on every row."""
    assert budget.fast is not None
    parts = len(validation.sizes)
    examples = max(1, min(len(budget.part_sizes()), parts))
    predicted, tokens = predict(validation, candidates, examples, model, weights, progress)
    short = shortlist(candidates, predicted, min(budget.shortlist, budget.max_evaluations or len(candidates)))

    def keys(some: Sequence[Candidate], upto: int) -> list[tuple[float, ...]]:
        return ranked(validation.score(some, upto, progress))

    left = halve(short, parts - 1, budget.finalists, keys)
    finals = dict(zip((one.key for one in left), validation.score(left, parts, progress), strict=True))
    trials = [trial(one, finals.get(one.key) or validation.partial(one)) for one in short]
    return Found(tuple(trials), predicted, len(candidates) - len(short), tokens)


def predict(
    validation: Validation,
    candidates: Sequence[Candidate],
    parts: int,
    model: nn.Module,
    weights: Weights,
    progress: Progress,
) -> tuple[dict[str, float], int]:
    """Candidate key -> predicted change of the mean loss on the first parts; and tokens computed for it."""
    work = validation.examples(parts, progress)
    total = sum(len(rows) for rows, _, _ in work)
    passes = [
        (some, [w * len(rows) / total for w in loss_weights(rows, found)]) for rows, some, found in work
    ]
    matrices = {one.matrix.name: one.matrix for one in candidates}
    gradients = weight_gradients(model, passes, list(matrices.values()))
    found: dict[str, float] = {}
    for done, (name, matrix) in enumerate(matrices.items()):
        progress("gradient", done, len(matrices))
        mine = [one for one in candidates if one.matrix.name == name]
        for blocks in dict.fromkeys(one.blocks for one in mine):
            changes = _changes(weights, matrix, gradients[name], blocks)
            found |= {one.key: changes(one.rank) for one in mine if one.blocks == blocks}
    progress("gradient", len(matrices), len(matrices))
    tokens = sum(make().inputs["input_ids"].numel() for some, _ in passes for make in some.batches)
    return found, tokens


def _changes(weights: Weights, matrix: Matrix, gradient: Tensor, blocks: int) -> Callable[[int], float]:
    """Rank -> predicted change, summed over the row blocks."""
    weight = weights.weight(matrix)
    curves = []
    for rows in row_blocks(matrix.out_features, blocks):
        parts = weights.decomposition(matrix) if blocks == 1 else decompose(weight[rows])
        curves.append(predicted_changes(parts.values, singular_gradient(parts, gradient[rows])))
    return lambda rank: sum(curve[min(rank, len(curve) - 1)] for curve in curves)


def ranked(tallies: Sequence[Tally]) -> list[tuple[float, ...]]:
    """Sort keys of candidates on few rows: the sum of their ranks by accuracy and by log loss.

    Accuracy alone is too coarse there, log loss alone not what is chosen by in the end.
    """
    by_accuracy = {value: i for i, value in enumerate(sorted({-one.accuracy for one in tallies}))}
    by_loss = {value: i for i, value in enumerate(sorted({one.mean_log_loss for one in tallies}))}
    spread = max(1, len(by_accuracy) - 1), max(1, len(by_loss) - 1)
    return [
        (by_accuracy[-one.accuracy] / spread[0] + by_loss[one.mean_log_loss] / spread[1], one.mean_log_loss)
        for one in tallies
    ]


def shortlist(candidates: Sequence[Candidate], predicted: Mapping[str, float], most: int) -> list[Candidate]:
    """The candidates of the largest predicted gains: matrices by their best one, a few of each."""
    ordered = sorted(candidates, key=lambda one: predicted[one.key])
    taken: dict[str, int] = defaultdict(int)
    found: list[Candidate] = []
    for one in ordered:
        if taken[one.matrix.name] < _PER_MATRIX and len(found) < most:
            taken[one.matrix.name] += 1
            found.append(one)
    return found


def trial(one: Candidate, found: Tally) -> Trial:
    """A candidate with its score."""
    return Trial(
        edit=one.edit,
        layer=one.matrix.layer,
        role=one.matrix.role,
        matrix=one.matrix.name,
        rho=one.rho,
        rank=one.rank,
        blocks=one.blocks,
        rows=found.rows,
        accuracy=found.accuracy,
        log_loss=found.mean_log_loss,
        consistency=found.consistency,
    )


def base_trial(found: Tally) -> Trial:
    """The model as it is."""
    return Trial("", -1, "", "", "", 0, 1, found.rows, found.accuracy, found.mean_log_loss, found.consistency)
