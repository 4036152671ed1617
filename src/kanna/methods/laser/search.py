"""The two searches: all candidates on all rows, or those that a gradient points at, on more and more rows."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kanna.linalg.decomposition import decompose, singular_gradient
from kanna.linalg.reduction import row_blocks
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.gradient import loss_weights, predicted_changes, weight_gradients
from kanna.methods.laser.results import Trial
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import Validation
from kanna.methods.laser.weights import Weights
from kanna.models.matrix import Matrix
from kanna.progress import Progress
from kanna.search.halving import halve
from kanna.tasks.journal import Tally

# Candidates of one matrix in a shortlist: neighbours in rho score alike.
_PER_MATRIX = 4


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        trials: Candidates with their scores; those with all rows may be chosen.
        predicted: Candidate key -> change of the loss that the gradient predicts; empty without one.
        left_out: Candidates that the budget did not reach.
    """

    trials: tuple[Trial, ...]
    predicted: Mapping[str, float]
    left_out: int


def exhaustive(
    validation: Validation, candidates: Sequence[Candidate], budget: Budget, progress: Progress
) -> Found:
    """Every candidate on every row, the most promising blocks first."""
    allowed = list(candidates[: budget.max_evaluations])
    parts = len(validation.sizes)
    started = time.monotonic()
    groups: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in allowed:
        groups[candidate.matrix.group, candidate.matrix.layer].append(candidate)
    trials: list[Trial] = []
    for some in groups.values():
        late = budget.max_seconds is not None and time.monotonic() - started > budget.max_seconds
        if late and trials:
            break
        progress("search", len(trials), len(allowed))
        tallies = validation.score(some, parts)
        trials += [trial(candidate, tally) for candidate, tally in zip(some, tallies, strict=True)]
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
    predicted = predict(validation, candidates, examples, model, weights, progress)
    short = shortlist(candidates, predicted, min(budget.shortlist, budget.max_evaluations or len(candidates)))

    def keys(some: Sequence[Candidate], upto: int) -> list[tuple[float, ...]]:
        return ranked(validation.score(some, upto, progress))

    left = halve(short, parts - 1, budget.finalists, keys)
    keys_left = (candidate.key for candidate in left)
    finals = dict(zip(keys_left, validation.score(left, parts, progress), strict=True))
    trials = [
        trial(candidate, finals.get(candidate.key) or validation.partial(candidate)) for candidate in short
    ]
    return Found(tuple(trials), predicted, len(candidates) - len(short))


def predict(
    validation: Validation,
    candidates: Sequence[Candidate],
    parts: int,
    model: nn.Module,
    weights: Weights,
    progress: Progress,
) -> dict[str, float]:
    """Candidate key -> predicted change of the mean loss on the first parts."""
    work = validation.examples(parts, progress)
    total = sum(len(rows) for rows, _, _ in work)
    passes = [
        (some, [w * len(rows) / total for w in loss_weights(rows, score)]) for rows, some, score in work
    ]
    matrices = {candidate.matrix.name: candidate.matrix for candidate in candidates}
    gradients = weight_gradients(model, passes, list(matrices.values()))
    predicted: dict[str, float] = {}
    for done, (name, matrix) in enumerate(matrices.items()):
        progress("gradient", done, len(matrices))
        own = [candidate for candidate in candidates if candidate.matrix.name == name]
        for blocks in dict.fromkeys(candidate.blocks for candidate in own):
            changes = _changes(weights, matrix, gradients[name], blocks)
            predicted |= {edit.key: changes(edit.rank) for edit in own if edit.blocks == blocks}
    progress("gradient", len(matrices), len(matrices))
    return predicted


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
    by_accuracy = {value: i for i, value in enumerate(sorted({-tally.accuracy for tally in tallies}))}
    by_loss = {value: i for i, value in enumerate(sorted({tally.mean_log_loss for tally in tallies}))}
    spread = max(1, len(by_accuracy) - 1), max(1, len(by_loss) - 1)
    return [
        (by_accuracy[-tally.accuracy] / spread[0] + by_loss[loss] / spread[1], loss)
        for tally in tallies
        for loss in [tally.mean_log_loss]
    ]


def shortlist(candidates: Sequence[Candidate], predicted: Mapping[str, float], most: int) -> list[Candidate]:
    """The candidates of the largest predicted gains: matrices by their best one, a few of each."""
    taken: dict[str, int] = defaultdict(int)
    short: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: predicted[candidate.key]):
        if taken[candidate.matrix.name] < _PER_MATRIX and len(short) < most:
            taken[candidate.matrix.name] += 1
            short.append(candidate)
    return short


def trial(candidate: Candidate, tally: Tally) -> Trial:
    """A candidate with its score."""
    return Trial(
        edit=candidate.edit,
        layer=candidate.matrix.layer,
        role=candidate.matrix.role,
        matrix=candidate.matrix.name,
        rho=candidate.rho,
        rank=candidate.rank,
        blocks=candidate.blocks,
        **_scores(tally),
    )


def base_trial(tally: Tally) -> Trial:
    """The model as it is."""
    return Trial(edit="", layer=-1, role="", matrix="", rho="", rank=0, blocks=1, **_scores(tally))


def _scores(tally: Tally) -> dict[str, Any]:
    return {
        "rows": tally.rows,
        "accuracy": tally.accuracy,
        "log_loss": tally.mean_log_loss,
        "consistency": tally.consistency,
        "perplexity": None,
    }
