"""After a fail: how much may stay, and what to leave out."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kanna.checkpoint import lineage
from kanna.models.matrix import Matrix, View
from kanna.models.selection import select
from kanna.runs.next_steps import share_that_passes, without_the_worst
from kanna.tasks.records import Record, TaskScore
from kanna.tasks.verdict.comparison import Blame
from kanna.tasks.verdict.tolerance import decide, parse_tolerance


def decided(
    difference: float, bound: float, allowed: float, status: str = "fail", higher: bool | None = None
) -> Any:
    """A decided task; where less is better, more is allowed."""
    return SimpleNamespace(
        higher_is_better=allowed < 0 if higher is None else higher,
        decision=SimpleNamespace(difference=difference, bound=bound, allowed=allowed, status=status),
    )


def compared(*tasks: Any) -> Any:
    return SimpleNamespace(tasks=tasks)


@pytest.mark.parametrize(
    ("difference", "bound", "allowed"),
    [
        (-0.19, -0.24, -0.01),
        (-0.02, -0.09, -0.05),
        (2.0, 2.6, 0.5),
        (0.01, -0.03, -0.01),
        (0.0, -0.02, -0.01),
    ],
)
def test_what_may_stay_just_passes(difference: float, bound: float, allowed: float) -> None:
    """Higher is better, lower is better, nothing lost but nothing sure."""
    share = share_that_passes(compared(decided(difference, bound, allowed)))
    assert share is not None and 0 < share < 1
    reached = share * difference + math.sqrt(share) * (bound - difference)
    assert reached == pytest.approx(allowed) or (difference > 0 > allowed and abs(reached) <= abs(allowed))


def test_the_task_that_needs_most_decides_and_what_passes_does_not() -> None:
    hard, easy = decided(-0.2, -0.25, -0.01), decided(-0.06, -0.1, -0.05)
    assert share_that_passes(compared(easy, hard)) == share_that_passes(compared(hard))
    assert share_that_passes(compared(decided(-0.2, -0.25, -0.3, "pass"), easy)) == share_that_passes(
        compared(easy)
    )
    assert share_that_passes(compared(decided(0.0, 0.0, -0.1, "pass"))) is None


def all_are(value: float) -> TaskScore:
    records = [Record(row, "", "", "", value == 1, {"acc": value}) for row in range(40)]
    return TaskScore.of("task.jsonl", "choice", "acc", True, {"acc": value}, {}, tuple(records))


@pytest.mark.parametrize(("drop", "allowed"), [("3pt", 0.03), ("1%", 0.01)])
def test_all_lost_leaves_little_of_the_error(drop: str, allowed: float) -> None:
    """40 of 40 and then none: the bound is the change itself, and tells no direction."""
    before, after = all_are(1.0), all_are(0.0)
    decision = decide(before, after, tolerance=parse_tolerance(drop))
    assert decision.status == "fail" and decision.difference == -1
    share = share_that_passes(compared(SimpleNamespace(higher_is_better=True, decision=decision)))
    assert share is not None and 0 < share <= allowed + 1e-9


def test_nothing_is_allowed_and_all_is_lost() -> None:
    assert share_that_passes(compared(decided(-1.0, -1.0, 0.0, higher=True))) == 0


def matrix(role: str, layer: int, module: str) -> Matrix:
    return Matrix(
        name=f"{module}.{role}",
        module=module,
        parameter="weight",
        layer=layer,
        role=role,
        out_features=4,
        in_features=4,
        view=View(),
        has_bias=False,
    )


@pytest.fixture
def model() -> Any:
    listed = [matrix(role, layer, f"m.{layer}.qkv") for layer in (0, 1) for role in ("q", "k", "v")]
    listed += [matrix(role, layer, f"m.{layer}.{role}") for layer in (0, 1) for role in ("up", "down")]
    return SimpleNamespace(matrices=tuple(listed))


def made(place: Path, *configs: dict[str, Any]) -> Path:
    """A directory that says which steps made it."""
    place.mkdir(parents=True)
    steps = tuple(lineage.Step(method="lowrank", config=config) for config in configs)
    lineage.write(place, lineage.Base(name="m", hash="0"), steps)
    return place


BLAMED = [
    Blame(matrix="m.1.qkv", repaired=8, undone=0),
    Blame(matrix="m.0.down", repaired=4, undone=1),
    Blame(matrix="m.1.up", repaired=3, undone=0),
    Blame(matrix="lm_head", repaired=2, undone=0),
]
REPAIRED = "(put back alone, of 20 lost answers 8 by m.1.qkv, 4 by m.0.down came right again)"


@pytest.mark.parametrize("chosen", ["all", "attn,down"])
def test_what_repairs_most_is_left_out_of_what_was_selected(model: Any, tmp_path: Path, chosen: str) -> None:
    said = without_the_worst(BLAMED, 20, model, tmp_path, made(tmp_path / "new", {"select": chosen}))
    assert said is not None and said.endswith(REPAIRED)
    expression = said.partition("--select '")[2].partition("'")[0]
    before, after = ({one.name for one in select(model.matrices, e)} for e in (chosen, expression))
    assert before - after == {"m.1.qkv.q", "m.1.qkv.k", "m.1.qkv.v", "m.0.down.down"} and after < before


@pytest.mark.parametrize(
    "configs",
    [
        [{"select": "re:down|qkv"}],
        [{"select": "attn;down@0"}, {"select": "all"}],
        [{"select": "all"}, {"rank": 3}],
        [{"select": "q,k,v@1;down@0"}],
    ],
)
def test_where_no_selection_can_be_written_matrices_are_named(
    model: Any, tmp_path: Path, configs: list[dict[str, Any]]
) -> None:
    """A pattern; several steps, one of which did it; a selection of which nothing would be left."""
    said = without_the_worst(BLAMED, 20, model, tmp_path, made(tmp_path / "new", *configs))
    assert said == f"leave out what does the harm: m.1.qkv, m.0.down {REPAIRED}"


def test_steps_that_the_base_has_too_do_not_count(model: Any, tmp_path: Path) -> None:
    base = made(tmp_path / "base", {"select": "mlp"})
    said = without_the_worst(
        BLAMED, 20, model, base, made(tmp_path / "new", {"select": "mlp"}, {"select": "all"})
    )
    assert said is not None and "--select 'all,!q@1,!k@1,!v@1,!down@0'" in said


@pytest.mark.parametrize("configs", [None, [], [{"edits": ["down@0:4"]}]])
def test_where_nothing_was_selected_nothing_is_said(
    model: Any, tmp_path: Path, configs: list[dict[str, Any]] | None
) -> None:
    """A model that kanna did not make, and steps that have no such setting."""
    new = tmp_path / "new" if configs is None else made(tmp_path / "new", *configs)
    assert without_the_worst(BLAMED, 20, model, tmp_path, new) is None


def test_where_nothing_repairs_nothing_is_said(model: Any, tmp_path: Path) -> None:
    new = made(tmp_path / "new", {"select": "all"})
    for one in (
        Blame(matrix="m.1.up", repaired=0, undone=0),
        Blame(matrix="elsewhere", repaired=3, undone=0),
    ):
        assert without_the_worst([one], 5, model, tmp_path, new) is None
