"""What a run leaves for the report, from what was planned and what came out."""

from collections.abc import Mapping, Sequence

from kanna.methods.basel import results
from kanna.methods.basel.excited import Shown
from kanna.methods.basel.execute import Outcome
from kanna.methods.basel.moved import most_moved
from kanna.methods.basel.plan import Plan
from kanna.models.matrix import Matrix
from kanna.training.loop import Trained

# Of weights and activations; more would make the file large and say nothing.
_DIGITS = 6


def stored(plan: Plan, ranks: Mapping[str, int | None]) -> dict[str, int]:
    """Matrix -> parameters."""
    return {
        name: plan.sizes[name].dense if rank is None else rank * (plan.sizes[name].m + plan.sizes[name].n)
        for name, rank in ranks.items()
    }


def result(plan: Plan, outcome: Outcome, model: str) -> results.Basel:
    """Of a run on the model of that name."""
    counts = stored(plan, outcome.ranks)
    left, parameters = sum(counts.values()), plan.inventory.parameters
    lost = outcome.forgotten
    return results.Basel(
        model=model,
        importance=plan.config.importance,
        parameters=plan.parameters,
        keep_selected=left / plan.parameters,
        keep_model=plan.rest + left / parameters,
        least_keep_model=plan.rest,
        rows=len(plan.data.train),
        held_out_hash=plan.data.held_out_digest,
        matrices=tuple(_matrix(m, outcome.ranks[m.name], counts[m.name]) for m in plan.selected),
        events=tuple(results.Event(step=step, bases=tuple(kept.values())) for step, kept in outcome.history),
        weights=_part(outcome.part_1),
        factors=_part(outcome.part_2),
        moved=_moved(plan, outcome),
        gained=_bases(outcome, outcome.gained),
        lost=_bases(outcome, outcome.lost),
        notes=notes(plan, outcome),
        text=None if lost is None else results.Text(before=lost.before, after=lost.after, tokens=lost.tokens),
    )


def notes(plan: Plan, outcome: Outcome) -> tuple[str, ...]:
    """What the reader must know of the measuring."""
    found = []
    looked, below = outcome.curved
    if looked:
        found.append(f"curvature: {below:,} of {looked:,} measured at the events were below 0 and count as 0")
    if plan.config.loss == "kl":
        found.append(
            "the loss of steps is the divergence from the model as it was; on rows that were not learnt it "
            "is that of the right tokens"
        )
    if plan.data.replay:
        found.append("the loss of steps counts tokens of replayed text, too")
    return tuple(found)


def _matrix(matrix: Matrix, rank: int | None, count: int) -> results.MatrixOutcome:
    return results.MatrixOutcome(
        name=matrix.name,
        role=matrix.role,
        layer=matrix.layer,
        out_features=matrix.out_features,
        in_features=matrix.in_features,
        rank=rank,
        kept=count / matrix.parameters,
    )


def _part(trained: Trained | None) -> results.Part | None:
    if trained is None:
        return None
    return results.Part(
        losses=trained.losses,
        validation=trained.validation,
        stopped=trained.stopped,
        held_out=held_out_loss(trained) if trained.validation else None,
    )


def held_out_loss(trained: Trained) -> float:
    """Of the state that was taken; a lower one with more bases is none that could be."""
    return dict(trained.validation).get(trained.best, trained.validation[-1][1])


def _moved(plan: Plan, outcome: Outcome) -> tuple[results.Weights, ...]:
    if not outcome.weights:
        return ()
    names = most_moved(outcome.weights, plan.selected)
    found = [(name, outcome.weights[name]) for name in names]
    return tuple(
        results.Weights(
            matrix=name,
            before=tuple(map(_rounded, weights.before.tolist())),
            after=tuple(map(_rounded, weights.after.tolist())),
        )
        for name, weights in found
    )


def _bases(outcome: Outcome, shown: Sequence[Shown]) -> tuple[results.Basis, ...]:
    return tuple(
        results.Basis(
            matrix=basis.matrix,
            place=basis.place,
            before=_rounded(float(outcome.weights[basis.matrix].before[basis.place])),
            after=_rounded(float(outcome.weights[basis.matrix].after[basis.place])),
            tokens=tuple(
                results.Token(
                    token=each.token, before=each.before, after=each.after, value=_rounded(each.value)
                )
                for each in basis.tokens
            ),
        )
        for basis in shown
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
