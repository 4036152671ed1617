"""What the method is for: beyond five times smaller it is ahead of factors that are trained for as long."""

import sys
from pathlib import Path
from statistics import fmean

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
@pytest.mark.minutes
def test_at_a_seventh_it_is_ahead_of_trained_singular_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the shipped model, two skills: the loss of held-out rows after as many steps, pairs of three seeds.

    Both see the same rows in the same batches; 15 % of the parameters of the matrices are left of either.
    """
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from basel_quality import SKILLS, run, task_of

    task = task_of(SKILLS["price+share"], tmp_path / "task")
    ahead = []
    for seed in range(3):
        ours, theirs = (
            run(method, task, 0.15, seed, "1,2,3", tmp_path / f"{seed}-{method}")
            for method in ("basel, fisher", "SVD, uniform")
        )
        assert ours["steps"] == theirs["steps"]
        assert ours["kept"] == pytest.approx(theirs["kept"], abs=0.005)
        ahead.append(theirs["loss"] - ours["loss"])
    assert min(ahead) > 0.2 and fmean(ahead) > 0.4
