"""Tuning and switching that are killed at any moment: gone on with to the same bytes, or never begun."""

import shutil
from collections.abc import Callable
from pathlib import Path

import killing
import pytest

import kanna


def whole(base: Path) -> dict[str, str]:
    """Bytes of everything but locks and records of runs."""
    kept = killing.hashes(base).items()
    return {name: digest for name, digest in kept if not name.endswith((".run.json", ".lock"))}


def test_a_killed_tuning_goes_on(quantised: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    config = kanna.TuneConfig(data=data, name="law", steps=3, rows=8)
    bases = [Path(shutil.copytree(quantised("llama"), tmp_path / str(i) / "base")) for i in range(2)]

    def run(base: Path, resume: bool) -> None:
        kanna.tune(base, config, resume=resume, force=False)

    count = killing.names_taken(lambda: run(bases[0], False), tmp_path / "count")
    expected = whole(bases[0])
    assert "scales/law/scales.safetensors" in expected and count > 3
    for point in range(2, count + 1):
        base = bases[1]
        shutil.rmtree(base / "scales", ignore_errors=True)
        killed, resumed = killing.killed_and_resumed(lambda resume: run(bases[1], resume), point, late=True)
        assert killed == -9
        if (base / "scales" / "law.run.json").is_file() and resumed != 0:
            assert point == count  # nothing was left to do but to say so
        assert whole(base) == expected, point


@pytest.mark.parametrize("late", [False, True])
def test_a_killed_switch_is_done_or_not(late: bool, base: Path) -> None:
    kanna.scales.activate(base, "law")
    before = whole(base)

    def run() -> None:
        killing.die_at(1, late)
        kanna.scales.activate(base, "support")

    assert killing.in_child(run) == -9
    active = [one.record.name for one in kanna.scales.listed(base) if one.active]
    assert active == (["support"] if late else ["law"])
    if not late:
        kept = {name: digest for name, digest in whole(base).items() if ".partial" not in name}
        assert kept == before
