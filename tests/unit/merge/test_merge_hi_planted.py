"""Hi-Merging on tasks in closed form: figures, kinds of conflict, actions, the guard, the grid."""

import statistics
from dataclasses import replace

import pytest
from planted_ground import Planted

from kanna.errors import InputError
from kanna.methods.merge.hi.config import HiOptions
from kanna.methods.merge.hi.contributions import Conflict, Impact, conflicts
from kanna.methods.merge.hi.foreseen import evaluations
from kanna.methods.merge.hi.ground import mean_normalised
from kanna.methods.merge.hi.ranking import MUTUAL, PARTIAL, SEVERE
from kanna.methods.merge.hi.resolving import Rules, action_for, resolved
from kanna.methods.merge.hi.stage_one import chosen, grids
from kanna.methods.merge.hi.state import GONE, WHOLE, Treatment, everywhere, nothing


def quiet(*_: object) -> None:
    """Says nothing."""


# Block 0: both want it, in opposite directions. 1: only a moves it, and b suffers. 2: both move it one way.
# 3: nobody moves it.
MOVES = [[1.0, 1.0, 0.5, 0.0], [-0.8, 0.0, 0.5, 0.0]]
TOPS = [[1.0, 1.0, 1.0, 0.0], [-1.0, -0.5, 1.0, 0.0]]
BENDS = [[2.0, 1.0, 0.5, 1.0], [1.0, 3.0, 0.5, 1.0]]


def planted(ties: tuple[float, float] = (0.25, -0.5)) -> Planted:
    return Planted(MOVES, TOPS, BENDS, list(ties))


def test_impacts_and_conflicts_in_closed_form() -> None:
    """alpha, beta, c, gamma and Gamma by the formulas of a quadratic, with scales and a share of a mean."""
    ground = planted()
    treatments = [Treatment(1.0, 0.9), Treatment(0.25, 0.8)]
    merged = everywhere(treatments, 4, 0.5)
    found = conflicts(ground, treatments, merged, quiet)
    mean_noise = [
        sum(n * (i + 1) for i, n in enumerate(ground.noise) if i % 4 == block) / 3 for block in range(4)
    ]
    own = [[0.9 * x for x in MOVES[0]], [0.5 * 0.8 * x for x in MOVES[1]]]
    both = [0.5 * (a + b) for a, b in zip(*own, strict=True)]

    def impacts(x: list[float], task: int, block: int) -> tuple[float, float]:
        d, top, bend, tie = x[block], TOPS[task][block], BENDS[task][block], ground.ties[task]
        alone = -bend * (d * d - 2 * d * top) + mean_noise[block] * d
        beside = tie * d * sum(x[other] for other in (block - 1, block + 1) if 0 <= other < 4)
        return alone + beside, alone

    for block, conflict in enumerate(found):
        gammas = []
        for task in range(2):
            alpha, beta = impacts(own[task], task, block)
            alpha_merged, beta_merged = impacts(both, task, block)
            assert conflict.own[task].alpha == pytest.approx(alpha, abs=1e-9)
            assert conflict.own[task].beta == pytest.approx(beta, abs=1e-9)
            assert conflict.merged[task].alpha == pytest.approx(alpha_merged, abs=1e-9)
            assert conflict.merged[task].beta == pytest.approx(beta_merged, abs=1e-9)
            assert conflict.own[task].contribution == pytest.approx(alpha + beta, abs=1e-9)
            gain = ground.mean(MOVES[task], task) - ground.mean([0.0] * 4, task)
            gammas.append((alpha + beta - alpha_merged - beta_merged) / gain)
        assert conflict.gamma == pytest.approx(gammas, abs=1e-9)
        assert conflict.total == pytest.approx(sum(gammas), abs=1e-9)
    assert len({round(conflict.total, 6) for conflict in found}) == 4


def test_standard_errors_are_those_of_rows() -> None:
    one, other = Impact((1.0, 2.0, 4.0), (0.5, 0.0, 1.0)), Impact((0.0, 1.0, 1.0), (0.0, 0.0, 0.25))
    conflict = Conflict(0, (one, other), (other, one), (2.0, 0.5))
    rows = [1.5, 1.0, 3.75]
    error = statistics.stdev(rows) / 3**0.5
    assert conflict.errors == pytest.approx((error / 2, error / 0.5))
    assert conflict.total_error == pytest.approx((error**2 / 4 + error**2 * 4) ** 0.5)
    mean = sum(rows) / 3
    assert conflict.gamma == pytest.approx((mean / 2, -mean * 2))
    assert conflict.hurt(None) == (True, False) and conflict.hurt(mean / 2 + 1e-9) == (False, False)


def conflict_of(gammas: tuple[float, ...], own: tuple[float, ...]) -> Conflict:
    """With these gammas and contributions, and no errors."""
    impacts = tuple(Impact((one, one), (0.0, 0.0)) for one in own)
    merged = tuple(Impact((one - gamma,) * 2, (0.0, 0.0)) for one, gamma in zip(own, gammas, strict=True))
    return Conflict(0, impacts, merged, (1.0,) * len(own))


NAMES = ("a", "b", "c")
EXPERTS = (Treatment(0.8, 0.6), Treatment(1.0, 1.0), Treatment(0.4, 0.2))


@pytest.mark.parametrize(
    ("gammas", "own", "kind", "expected"),
    [
        # Severe: all are hurt, and the expert that gives most stays as it is.
        ((0.1, 0.2, 0.3), (0.5, 0.9, 0.1), SEVERE, (GONE, EXPERTS[1], GONE)),
        # Partial: those who are not hurt are pruned and scaled with half of what they have elsewhere.
        ((0.1, -0.2, 0.3), (0.5, 0.9, 0.1), PARTIAL, (EXPERTS[0], Treatment(0.5, 0.5), EXPERTS[2])),
        ((0.1, -0.2, -0.3), (0.5, 0.9, 0.1), PARTIAL, (EXPERTS[0], Treatment(0.5, 0.5), Treatment(0.2, 0.1))),
        # Mutual: nobody is hurt.
        ((0.0, -0.2, -0.3), (0.5, 0.9, 0.1), MUTUAL, EXPERTS),
    ],
)  # fmt: skip
def test_what_is_done(
    gammas: tuple[float, ...], own: tuple[float, ...], kind: str, expected: tuple[Treatment, ...]
) -> None:
    conflict = conflict_of(gammas, own)
    assert conflict.kind(None) == kind
    row, _ = action_for(NAMES, EXPERTS, EXPERTS, conflict, None)
    assert row == expected


def test_gains_tell_who_gives_most() -> None:
    """Contributions of tasks with other units are compared over what their experts gain."""
    one = conflict_of((0.1, 0.1), (10.0, 0.9))
    assert one.strongest == 0 and replace(one, gains=(100.0, 1.0)).strongest == 1


def test_what_is_gone_stays_gone_but_for_the_strongest() -> None:
    partial = conflict_of((0.1, -0.2, 0.3), (0.5, 0.9, 0.1))
    assert action_for(NAMES, EXPERTS, (EXPERTS[0], GONE, GONE), partial, None)[0] == (EXPERTS[0], GONE, GONE)
    severe = conflict_of((0.1, 0.2, 0.3), (0.5, 0.9, 0.1))
    assert action_for(NAMES, EXPERTS, (EXPERTS[0], GONE, GONE), severe, None)[0] == (GONE, EXPERTS[1], GONE)


def test_planted_conflicts_are_found_and_resolved() -> None:
    ground = Planted(MOVES, TOPS, BENDS, [0.0, 0.0], [0.0, 0.0])
    begun = everywhere([WHOLE, WHOLE], 4)
    state, rounds = resolved(ground, [WHOLE, WHOLE], begun, Rules(tau=1e-6, rounds=1), quiet)
    kinds = [one.kind(1e-6) for one in rounds[0].conflicts]
    assert kinds == [SEVERE, PARTIAL, MUTUAL, MUTUAL]
    steps = {step.block: step for step in rounds[0].steps}
    # By hand: a gives 2 x 2 of its gain 3.375 in block 0, and b 2 x 0.96 of its 1.335.
    shares = [2 * 2.0 / 3.375, 2 * 0.96 / 1.335]
    strongest = "ab"[shares.index(max(shares))]
    assert steps[0].action == f"{strongest} alone" and steps[1].action == "a pruned and scaled again"
    tried = [step.block for step in rounds[0].steps]
    totals = [rounds[0].conflicts[block].total for block in tried]
    assert totals == sorted(totals, reverse=True)
    assert steps[1].accepted and state.rows[1] == (Treatment(0.5, 0.5), WHOLE)
    assert state.rows[2:] == begun.rows[2:]
    assert mean_normalised(ground, state) > mean_normalised(ground, begun)


@pytest.mark.parametrize("seed", range(20))
def test_the_guard_never_lowers_the_score(seed: int) -> None:
    """On random tasks; rejected steps leave the merge as it was, and rounds end when nothing changes."""
    import random

    draw = random.Random(seed)
    numbers = lambda: [draw.uniform(-1, 1) for _ in range(5)]  # noqa: E731
    moves = [numbers() for _ in range(3)]
    tops = [[x + draw.uniform(-0.2, 0.2) for x in row] for row in moves]
    ground = Planted(moves, tops, [[abs(x) + 0.5 for x in numbers()] for _ in range(3)], [0.1, -0.1, 0.0])
    begun = everywhere([WHOLE] * 3, 5)
    state, rounds = resolved(ground, [WHOLE] * 3, begun, Rules(rounds=3), quiet)
    score = mean_normalised(ground, begun)
    for one in rounds:
        for step in one.steps:
            assert step.before == score
            assert step.accepted == (step.after >= step.before)
            score = step.after if step.accepted else score
    assert mean_normalised(ground, state) == score >= mean_normalised(ground, begun)
    assert all(one.changed for one in rounds[:-1]) and (len(rounds) == 3 or not rounds[-1].changed)


def test_the_grid_finds_the_best_pair() -> None:
    """With p and s a move is s sqrt(p) times itself: the best pair has the product that the top asks for."""
    ground = Planted([[2.0], [-2.0]], [[1.0], [-0.6]], [[1.0], [1.0]], [0.0, 0.0], [0.0])
    cells = grids(ground, [0.25, 1.0], [0.3, 0.5, 0.6, 1.0], quiet)
    assert [len(some) for some in cells] == [8, 8]
    assert chosen(cells[0]) == Treatment(1.0, 0.5)  # as good as 0.25, 1, which is tried later
    assert chosen(cells[1]) == Treatment(1.0, 0.3)
    pairs = {(p, s) for p in (0.25, 1) for s in (0.3, 0.5, 0.6, 1)}
    assert {(cell.kept, cell.scale) for cell in cells[0]} == pairs
    for cell in cells[0]:
        assert cell.score == pytest.approx(-((2 * cell.scale * cell.kept**0.5 - 1) ** 2))


def test_keys_tell_models_apart_not_words() -> None:
    base = nothing(2, 2)
    assert everywhere([Treatment(0.0, 1.0), Treatment(1.0, 0.0)], 2).key == base.key
    assert everywhere([WHOLE, WHOLE], 2, 0.5).key == everywhere([Treatment(1.0, 0.5)] * 2, 2).key
    assert everywhere([WHOLE, GONE], 2).key != everywhere([GONE, WHOLE], 2).key
    assert everywhere([WHOLE, GONE], 2).key != everywhere([WHOLE, GONE], 2).without(0).key


def test_the_number_of_evaluations() -> None:
    """Of the paper's setting, 28 blocks and two experts: 224 of blocks, and few more, in the first round."""
    layerwise = evaluations(HiOptions(stages="layer", rounds=1), 2, 28, 100)
    assert (layerwise.analysis, layerwise.steps, layerwise.grid) == (224, 56, 0)
    assert evaluations(HiOptions(stages="model"), 2, 28, 100).total == 2 * 100 + 6
    assert evaluations(HiOptions(stages="both", rounds=3), 2, 28, 100).total == 200 + 10 + 224 + 56 + 2 * (
        112 + 56
    )
    assert HiOptions().stages == "layer" and HiOptions().tried == ("1", "1")  # what was best
    assert HiOptions(stages="both").tried == HiOptions(stages="model").tried == ("0.3,0.6,1",) * 2
    with pytest.raises(InputError, match="one round may take 290"):
        evaluations(HiOptions(stages="layer", max_evaluations=289), 2, 28, 100)
    with pytest.raises(InputError, match="the first stage may take 206"):
        evaluations(HiOptions(stages="model", max_evaluations=205), 2, 28, 100)
