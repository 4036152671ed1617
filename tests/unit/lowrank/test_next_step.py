"""A run that fails says with which budget it would pass, by its own curves; and that one does."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import kanna
from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank import enough as foretell
from kanna.recipe.report import report

DEMO = Path(kanna.__file__).parent / "demo"
QUESTIONS = DEMO / "data" / "questions.jsonl"


def shrunk(out: Path, tolerance: str, cache: Path, **settings: Any) -> Any:
    return kanna.lowrank(
        DEMO / "model",
        out,
        kanna.LowRankConfig(**settings),
        calibration=DEMO / "data" / "calibration.jsonl",
        criteria=kanna.criteria_of(QUESTIONS, tolerance),
        cache=cache,
    )


def test_the_budget_that_is_foretold_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[float, float]] = []
    error = foretell._error

    def spied(ranks: Ranks, energies: Any) -> float:
        found = error(ranks, energies)
        kept = sum(96 * 2 if rank is None else rank for rank in ranks.values())
        seen.append((kept, found))
        return found

    monkeypatch.setattr(foretell, "_error", spied)
    failed = shrunk(tmp_path / "half", "5%", tmp_path / "cache", keep=0.5)
    assert failed.status == "fail"
    (step,) = failed.comparison.next_steps
    assert "predicted, not measured" in step
    keep = float(re.findall(r"--keep (0\.\d\d) is the smallest that would pass", step)[0])
    share = float(re.findall(r"must fall to ([\d.]+) %", step)[0]) / 100
    assert 0.5 < keep < 0.9
    now, tried = seen[0][1], seen[1:]
    assert min(found for _, found in tried) <= share * now * 1.1 and len(tried) < 8
    assert [found for _, found in sorted(tried)] == sorted((found for _, found in tried), reverse=True)
    passed = shrunk(tmp_path / "more", "5%", tmp_path / "cache", keep=keep)
    assert passed.status == "pass" and passed.comparison.next_steps == ()
    page = report([tmp_path / "half"], tmp_path / "page.html").html.read_text()
    assert f"--keep {keep:.2f} is the smallest that would pass" in page


def test_a_fixed_rank_is_answered_with_a_rank(tmp_path: Path) -> None:
    failed = shrunk(tmp_path / "out", "10%", tmp_path / "cache", rank=16, method="plain")
    (step,) = failed.comparison.next_steps
    rank = int(re.findall(r"--rank (\d+) is the smallest", step)[0])
    assert 16 < rank <= 96


def test_factors_are_advised_a_rank_that_they_have(tmp_path: Path) -> None:
    """Ranks above the stored one make nothing smaller, and are not asked for."""
    kanna.lowrank(DEMO / "model", tmp_path / "a", kanna.LowRankConfig(rank=40, method="plain"))
    failed = kanna.lowrank(
        tmp_path / "a",
        tmp_path / "b",
        kanna.LowRankConfig(rank=4),
        calibration=DEMO / "data" / "calibration.jsonl",
        criteria=kanna.criteria_of(QUESTIONS, "1%"),
        cache=tmp_path / "cache",
    )
    assert failed.status == "fail" and (tmp_path / "b" / "kanna.json").exists()
    assert failed.comparison is not None
    (step,) = failed.comparison.next_steps
    rank = re.findall(r"--rank (\d+) is the smallest", step)
    assert (rank and 4 < int(rank[0]) < 40) or "no --rank that makes the model smaller is enough" in step


def test_a_step_that_cannot_advise_loses_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("no rank is left", "")

    monkeypatch.setattr("kanna.methods.lowrank.step.enough", refuse)
    failed = shrunk(tmp_path / "out", "10%", tmp_path / "cache", rank=16, method="plain")
    assert failed.status == "fail" and (tmp_path / "out" / "kanna.json").exists()
    assert failed.comparison.next_steps == ()
    assert "no settings are advised: no rank is left" in failed.comparison.notes


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "100 %"),
        (0.999, "100 %"),
        (0.173, "17 %"),
        (0.03, "3 %"),
        (1e-5, "less than 0.01 %"),
        (0, "0 %"),
    ],
)
def test_percentages_are_written_out(share: float, said: str) -> None:
    assert foretell._percent(share) == said


def test_larger_budgets_begin_above_what_was_kept() -> None:
    plan: Any = SimpleNamespace(config=kanna.LowRankConfig(keep=0.29))
    name, budgets = foretell._budgets(plan, [])
    assert name == "keep" and budgets[0] == 0.3 and budgets[-1] == 0.99


def test_without_curves_nothing_is_foretold(tmp_path: Path) -> None:
    """Anchored factors of ranks that are already decided are fitted without a survey."""
    failed = shrunk(tmp_path / "out", "1%", tmp_path / "cache", keep=0.4, allocation="uniform")
    assert failed.status == "fail" and failed.comparison.next_steps == ()


def blamed(damaged: Path, cache: Path) -> Any:
    return kanna.compare(
        DEMO / "model",
        damaged,
        kanna.criteria_of(QUESTIONS, "1%"),
        kanna.EvalOptions(limit=120),
        distribution=False,
        blame=True,
        cache=cache,
    )


def test_what_does_the_harm_is_left_out_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = Path(shutil.copytree(DEMO / "model", tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"].zero_()
    tensors["model.layers.4.self_attn.q_proj.weight"] *= 1.001
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    step = lineage.Step(method="lowrank", config={"select": "attn,down"})
    lineage.write(damaged, lineage.Base(name="demo", hash="0"), (step,))
    found = blamed(damaged, tmp_path / "cache")
    assert found.status == "fail"
    (said,) = found.next_steps
    assert "leave out what does the harm: --select 'attn,down,!down@2' (put back alone, of" in said

    def no_blocks(_: Any) -> Any:
        raise InputError("it has no list of blocks", "")

    monkeypatch.setattr("kanna.runs.compare.Source", no_blocks)
    found = blamed(damaged, tmp_path / "cache")
    assert found.status == "fail" and found.blame and found.next_steps == ()
    assert "no selection is advised: it has no list of blocks" in found.notes
