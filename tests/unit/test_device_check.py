"""The check for CUDA devices, rehearsed on the CPU."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import process_state

SCRIPT = Path(__file__).parents[2] / "scripts" / "device_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    specification = importlib.util.spec_from_file_location("device_check", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["device_check"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    """The script is a program of its own, which seeds what it draws from."""
    with process_state.given_back():
        yield


def test_without_a_device_it_says_so(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no CUDA device") and said.count("\n") == 1


def test_rehearsal(check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is there, and two runs on one machine agree to the last bit."""
    out = tmp_path / "figures.json"
    code = check.main(["--rehearse", "--stages", "agreement,speed,linalg", "--json", str(out)])
    found = json.loads(out.read_text())
    assert code == 0, capsys.readouterr().out
    assert found["passed"] and not found["skipped"] and not found["failed"]
    figures = {(figure["stage"], figure["name"]): figure["ratio"] for figure in found["figures"]}
    names = " ".join(name for _, name in figures)
    for phase in check.PHASES:
        for keep in ("0.8", "0.5"):
            assert f"{phase}, keep {keep}" in names
    assert figures["agreement", "refined: block outputs apart"] == 0
    assert figures["agreement", "refined: perplexity"] == 1
    assert figures["linalg", "singular values, 48 x 96, float64"] == 0
    assert figures["linalg", "its singular values, 48 x 96, float64"] == 0
    assert all(figure["ratio"] > 0 for figure in found["figures"] if figure["stage"] == "speed")
    assert found["card"] in capsys.readouterr().out


@pytest.mark.slow
def test_marked_tests_are_found(check: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert check.main(["--rehearse", "--stages", "tests", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["failed"] == []


def test_what_does_not_fit_the_time_is_named(check: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert check.main(["--rehearse", "--minutes", "0.001", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["skipped"] == ["tests", "agreement", "speed", "linalg"] and found["figures"] == []


def test_a_stage_that_breaks_is_named_and_the_next_goes_on(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setitem(check.STAGES, "speed", broken)
    out = tmp_path / "figures.json"
    assert check.main(["--rehearse", "--stages", "speed,linalg", "--json", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["failed"] == ["speed: RuntimeError: device-side assert"]
    assert {figure["stage"] for figure in found["figures"]} == {"linalg"}


def test_a_device_that_computes_otherwise_does_not_pass(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a device would: every second decomposition, with three repeats on the device and one on the CPU."""
    plain, calls = check.basis, []

    def wrong(weight: torch.Tensor, *args: object, **more: object) -> object:
        calls.append(1)
        return plain(weight * (1.01 if len(calls) % 5 else 1.0), *args, **more)

    monkeypatch.setattr(check, "basis", wrong)
    out = tmp_path / "figures.json"
    assert check.main(["--rehearse", "--stages", "linalg", "--json", str(out)]) == 1
    bad = {figure["name"] for figure in json.loads(out.read_text())["figures"] if not figure["passed"]}
    assert "singular values, 48 x 48, float64" in bad
    assert "its singular values, 48 x 48, float64" not in bad
