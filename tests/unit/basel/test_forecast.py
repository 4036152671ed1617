"""What a dry run foresees, against singular values and counts made here."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kanna
from kanna.errors import InputError
from kanna.methods.basel import forecast
from kanna.methods.basel.config import BaselConfig
from kanna.runs.runner import RunResult

Base = Callable[[str], Path]


def foreseen(base: Path, rows: Path, **given: Any) -> RunResult:
    settings = {"data": rows, "keep": 0.5, "rows": 8, "prune_events": 3, "epochs": (1, 2, 1), **given}
    return kanna.basel(base, None, BaselConfig(**settings), dry_run=True)


def shares_around(values: torch.Tensor, rank: int) -> tuple[float, float]:
    """Shares of the sum for which so many of the values are kept: above the first, up to the second."""
    sums = values.double().cumsum(0) / values.double().sum()
    return (float(sums[rank - 2]) if rank > 1 else 0.0), float(sums[rank - 1])


def test_steps_of_all_parts_are_divided_as_epochs_are(bases: Base, rows: Path) -> None:
    more, epochs = (foreseen(bases("llama"), rows, **given).to_dict() for given in ({"steps": 30}, {}))
    steps = [(told["plan"]["steps"], told["plan"]["factor_steps"]) for told in (more, epochs)]
    assert steps == [(22, 8), (15, 5)]  # 22.5 is rounded to even
    read = [told["figures"]["tokens_read"] for told in (more, epochs)]
    assert read[0] == pytest.approx(30 / 20 * read[1], rel=0.01)


def test_events_that_nobody_counted_fit_into_their_steps(bases: Base, rows: Path) -> None:
    """One in eight steps of part 1, 13 here, would be more than there are steps to drop bases in."""
    given = {"epochs": (20, 2, 1), "prune_events": None}
    plan = foreseen(bases("llama"), rows, **given).to_dict()["plan"]
    assert (plan["steps"], plan["events"]) == (110, 10)
    one = foreseen(bases("llama"), rows, **{**given, "epochs": (1, 1, 1)}).plan
    assert one.lines()[3].startswith("10 steps with 1 event, then")
    with pytest.raises(InputError, match="13 events do not fit into 10 steps"):
        foreseen(bases("llama"), rows, **{**given, "prune_events": 13})


def test_ranks_hold_one_share_of_all_singular_values(bases: Base, rows: Path) -> None:
    base = bases("llama")
    result = foreseen(base, rows)
    ranks, dense = (result.figures[key] for key in ("ranks_by_spectra", "dense_by_spectra"))
    weights = {name: load_file(base / "model.safetensors")[f"{name}.weight"] for name in (*ranks, *dense)}
    assert len(weights) == 21
    count, low, high = 0, 0.0, 1.0
    for name, weight in weights.items():
        m, n = weight.shape
        if name in dense:
            count += m * n
            continue
        count += ranks[name] * (m + n)
        assert ranks[name] * (m + n) < m * n
        below, above = shares_around(torch.linalg.svdvals(weight), ranks[name] - 1)  # one is new
        low, high = max(low, below), min(high, above)
    assert low < high + 1e-9  # there is a share that all of them hold
    assert count == pytest.approx(0.5 * result.plan.parameters, rel=0.02)


def test_the_papers_share_is_that_of_each_matrix(bases: Base, rows: Path) -> None:
    base = bases("llama")
    result = foreseen(base, rows, keep=None, keep_sigma=0.4, importance="sigma", extra_rank=0)
    name = "model.layers.1.mlp.up_proj"
    sums = torch.linalg.svdvals(load_file(base / "model.safetensors")[f"{name}.weight"]).double().cumsum(0)
    expected = int((sums < 0.4 * sums[-1]).sum()) + 1
    assert result.figures["ranks_by_spectra"][name] == expected
    told = result.to_dict()
    assert told["plan"]["parameters_at_end"] is None
    bytes_ = (base / "model.safetensors").stat().st_size
    assert 0 < told["figures"]["model_bytes_at_end"] < told["figures"]["model_bytes_now"] <= bytes_


def test_bytes_tokens_steps_and_least_keep(bases: Base, rows: Path, tmp_path: Path) -> None:
    base = bases("llama")
    foretold = foreseen(base, rows).to_dict()
    settings = BaselConfig(data=rows, keep=0.5, rows=8, prune_events=3, epochs=(1, 2, 1))
    done = kanna.basel(base, tmp_path / "out", settings)
    assert (
        foretold["out"] is None
        and foretold["figures"]["model_bytes_now"] == done.figures["model_bytes_before"]
    )
    # What is written has a little more: headers, and a marker for every module that is factors.
    assert foretold["figures"]["model_bytes_at_end"] == pytest.approx(
        done.figures["model_bytes_after"], rel=0.03
    )
    plan = foretold["plan"]
    assert (plan["steps"], plan["events"], plan["factor_steps"]) == (15, 3, 5)
    tokens = sum(len(example) for example in done.plan.data.train.all)
    assert plan["tokens"] == tokens and foretold["figures"]["tokens_read"] == 4 * tokens
    # One basis and a new one of each matrix, or dense where that is less.
    shapes = [tuple(m.shape) for m in done.plan.selected]
    fewest = sum(min(m * n, 2 * (m + n)) for m, n in shapes)
    assert plan["least_keep"] == pytest.approx(fewest / sum(math.prod(shape) for shape in shapes))


def test_tables_say_the_same(bases: Base, rows: Path) -> None:
    result = foreseen(bases("llama"), rows)
    by_role, together = result.plan.tables()
    cells = {row[0]: row for row in by_role.rows}
    assert cells["q"][:5] == ["q", "3", "24", "1", f"{3 * 24 * 24:,}"]
    kept = sum(int(row[4].replace(",", "")) * float(row[7][:-2]) / 100 for row in by_role.rows)
    assert kept == pytest.approx(0.5 * result.plan.parameters, rel=0.02)
    facts = dict(together.rows)
    assert facts["steps"] == "15 with 3 events, then 5 of the factors" and facts["rows cut"] == "0"
    assert facts["time of training"].startswith("about ") and "tried out here" in facts["time of training"]
    assert together.nature == "estimated"


def test_time_is_the_steps_times_one_that_was_tried(
    bases: Base, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_tried", lambda *_: 2.0)
    result = foreseen(bases("llama"), rows)
    data, batch = result.plan.data, result.plan.batches.at(0)[0]
    looks = 16 * sum(map(len, data.validation.all)) / sum(len(data.train.all[i]) for i in batch) / 3
    assert result.figures["estimated_seconds"] == pytest.approx(2.0 * (20 + looks))


def test_text_that_is_replayed_is_read_and_takes_its_time(
    bases: Base, rows: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are longer than rows: without them a step seems a fraction of what it is."""
    took: list[int] = []
    monkeypatch.setattr(forecast, "_tried", lambda _, some: took.append(sum(map(len, some))) or 2.0)
    result = foreseen(bases("llama"), rows, replay=text, steps=7)
    data, read = result.plan.data, []
    for step in range(7):
        task, replayed = result.plan.batches.at(step)
        assert len(task) in (5, 6) and len(replayed) == 2
        read.append(sum(len(data.train.all[i]) for i in task) + sum(len(data.replay[i]) for i in replayed))
    assert result.figures["tokens_read"] == pytest.approx(sum(read), rel=0.1)
    assert took == read[:1]
    looks = 16 * sum(map(len, data.validation.all)) / read[0] / 3
    assert result.figures["estimated_seconds"] == pytest.approx(2.0 * (7 + looks))


def test_where_a_step_is_too_long_the_speed_of_a_product_is_taken(
    bases: Base, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_MOST_FOR_A_STEP", 1.0)
    monkeypatch.setattr(forecast, "_MOST_FOR_SPECTRA", 1.0)
    monkeypatch.setattr(forecast, "_multiplications_a_second", lambda _: 1e6)
    result = foreseen(bases("llama"), rows)
    data, batch = result.plan.data, result.plan.batches.at(0)[0]
    tokens = sum(len(data.train.all[i]) for i in batch)
    step = 6 * result.plan.inventory.parameters * tokens / 1e6
    looks = 16 * sum(map(len, data.validation.all)) / tokens / 3
    assert result.figures["estimated_seconds"] == pytest.approx(step * (20 + looks))
    assert "as one product took here" in result.figures["estimated_from"]
    assert result.figures["ranks_by_spectra"] == {} and result.plan.tables()[0].rows[0][5:] == ["", "", ""]


def test_factors_that_are_there_have_their_ranks(bases: Base, rows: Path, tmp_path: Path) -> None:
    base, first = bases("llama"), tmp_path / "first"
    kanna.lowrank(base, first, kanna.LowRankConfig(keep=0.6, method="plain", align=1, select="mlp"))
    result = kanna.basel(base, None, BaselConfig(data=rows, start=first), dry_run=True)
    config = kanna.inspect(first)
    ranks = result.figures["ranks_by_spectra"]
    assert ranks and all("mlp" in name for name in ranks) and config.bytes < kanna.inspect(base).bytes
    by_role = result.plan.tables()[0]
    assert by_role.title == "By role; factors that are there"
    assert all(row[3] == "" for row in by_role.rows)  # no new bases


def test_a_step_of_a_chain_is_foreseen_without_weights_of_its_own(bases: Base, rows: Path) -> None:
    steps = [
        {"laser": {"edits": ["mlp:1:k=3"]}},
        {"basel": {"data": str(rows), "keep": 0.5, "epochs": "1,1,0", "rows": 8, "prune_events": 2}},
    ]
    result = kanna.run({"model": str(bases("llama")), "steps": steps}, dry_run=True)
    plan = result.steps[1].plan
    assert plan is None or plan.tables()[0].title == "By role; singular values are not looked at"
