"""Hi-Merging without tasks: sign conflicts by plain loops, what is done about them, and what it is called."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import save_model, weights
from safetensors.torch import load_file, save_file
from tuned_tasks import split_words, tasks_of

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.hi.config import HiOptions
from kanna.methods.merge.hi.signs import SignConflict, Votes, resolved_by_signs
from kanna.methods.merge.hi.state import GONE, WHOLE, Treatment, everywhere
from kanna.tasks.options import EvalOptions

Models = dict[str, Path]


def by_loops(differences: list[list[float]], own: int) -> tuple[float, float]:
    """gamma of one expert, and its standard error."""
    energy = lost = chance = variance = 0.0
    for entries in zip(*differences, strict=True):
        rest = sum(entries) - entries[own]
        energy += entries[own] ** 2
        if (entries[own] + rest) * entries[own] < 0:
            lost += entries[own] ** 2
        if abs(entries[own]) < abs(rest):
            chance += entries[own] ** 2 / 2
            variance += entries[own] ** 4 / 4
    return (lost - chance) / energy, variance**0.5 / energy


def drawn(seed: int, count: int, experts: int = 3) -> torch.Tensor:
    return torch.randn(experts, count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("experts", [2, 3])
def test_gamma_by_plain_loops(experts: int) -> None:
    values = drawn(1, 60, experts) * torch.tensor([1.0, 3.0, 0.4])[:experts, None]
    votes = Votes(experts)
    for piece in values.split(7, dim=1):
        votes.add(list(piece))
    told = votes.conflict(4, [2 * one for one in votes.energy])
    for own in range(experts):
        wanted = by_loops(values.double().tolist(), own)
        assert (told.gamma[own], told.errors[own]) == pytest.approx(wanted, abs=1e-12)
    assert told.shares == pytest.approx([0.5] * experts) and told.block == 4


def test_unrelated_ones_have_none_and_opposed_ones_much() -> None:
    """Two of equal length lose 0.5 - 1/pi by two of their energy where signs are thrown."""
    one, other = drawn(2, 400_000, 2)
    for second, low, high in (
        (other, -3.0, 3.0),
        (one.sign() * other.abs(), -1e9, -100.0),
        (-one.sign() * other.abs(), 100.0, 1e9),
    ):
        votes = Votes(2)
        votes.add([one, second])
        told = votes.conflict(0, votes.energy)
        assert all(low < g / e < high for g, e in zip(told.gamma, told.errors, strict=True))
    assert told.gamma[0] == pytest.approx(0.25 - 1 / (2 * torch.pi), abs=2e-3)


def test_conflicts_are_acted_on_the_worst_first() -> None:
    found = [
        SignConflict(0, (-0.1, -0.2), (0.01, 0.01), (0.2, 0.2)),
        SignConflict(1, (0.1, 0.1), (0.01, 0.01), (0.3, 0.5)),
        SignConflict(2, (0.5, -0.1), (0.01, 0.01), (0.5, 0.3)),
    ]
    state, told = resolved_by_signs(("a", "b"), WHOLE, everywhere([WHOLE] * 2, 3), found, None)
    assert state.rows == ((WHOLE, WHOLE), (GONE, WHOLE), (WHOLE, Treatment(0.5, 0.5)))
    assert [(step.block, step.kind) for step in told.steps] == [(2, "partial"), (1, "severe")]
    assert all(step.before is None and step.after is None for step in told.steps)
    unchanged, quiet = resolved_by_signs(("a", "b"), WHOLE, everywhere([WHOLE] * 2, 3), found, 1.0)
    assert unchanged == everywhere([WHOLE] * 2, 3) and not quiet.steps


@pytest.fixture(scope="module")
def fighting(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Experts that are opposed in layer 0, of which b is the longer one there, and agree elsewhere."""
    place = tmp_path_factory.mktemp("fighting")
    base = save_model(place / "base", 0, torch.float32)
    found = split_words({"base": base, "a": base, "b": base}, tmp_path_factory.mktemp("spoken"))
    origin = load_file(base / "model.safetensors")
    random = torch.Generator().manual_seed(5)
    moved: dict[str, dict[str, torch.Tensor]] = {"a": {}, "b": {}}
    for name, value in origin.items():
        own, size = (torch.randn(value.shape, generator=random) * 0.05 for _ in range(2))
        inside = ".layers.0." in name
        moved["a"][name] = value + own
        moved["b"][name] = value + size.abs() * own.sign() * (-3.0 if inside else 0.5)
    for name, values in moved.items():
        save_file(values, found[name] / "model.safetensors", {"format": "pt"})
    return found


def test_the_merge_is_what_the_signs_say(fighting: Models, tmp_path: Path) -> None:
    before = {name: weights(fighting[name]) for name in ("base", "a", "b")}
    done = kanna.merge_hi(
        fighting["base"], {name: fighting[name] for name in "ab"}, {}, tmp_path / "out",
        HiOptions(data_free=True),
    )  # fmt: skip
    assert done.outcome is not None and done.passed
    kinds = {block.block: block.kind for block in done.outcome.rounds[0].blocks}
    assert kinds == {"embeddings": "mutual", "0": "severe", "1": "mutual", "norm and head": "mutual"}
    for name, value in weights(tmp_path / "out").items():
        parts = {one: before[one][name] - before["base"][name] for one in "ab"}
        wanted = parts["b"] if ".layers.0." in name else parts["a"] + parts["b"]
        torch.testing.assert_close(value, before["base"][name] + wanted, rtol=0, atol=1e-6)
    told = json.loads((tmp_path / "out" / "merge.json").read_text())["hi"]
    assert told == done.outcome.to_dict() and told["settings"]["data_free"] is True
    assert told["settings"] == {
        "stages": "layer", "p": "1", "s": "1", "scope": "tensor", "combine": "sum", "consensus": "none",
        "data_free": True, "group": 1, "tau": None, "rounds": 1,
    }  # fmt: skip
    assert told["evaluations"] == 0 and told["before"] is None and told["test"] is None
    again = kanna.merge_hi(
        fighting["base"], {name: fighting[name] for name in "ab"}, {}, tmp_path / "half",
        HiOptions(data_free=True, p="0.5", s="0.8", combine="mean", tau=9.0),
    )  # fmt: skip
    assert again.outcome is not None
    assert again.outcome.settings["p"] == "0.5" and again.outcome.settings["s"] == "0.8"
    assert {(part.kept, part.scales) for part in again.outcome.parts} == {((0.5, 0.5), (0.8, 0.8))}
    recipe = json.loads((tmp_path / "half" / "merge.json").read_text())
    assert recipe["groups"][0]["parameters"]["lambda"] == 0.5


def test_the_verb_says_what_it_is_and_rows_only_judge(
    fighting: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", "hi", str(fighting["base"]), "--data-free", "--context", "16"]
    files = tasks_of(fighting, tmp_path)
    for name, rows in files.items():
        words += ["--expert", f"{name}={fighting[name]}", "--test", f"{name}={rows}"]
    words += ["--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "no evaluations" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "This is not the paper's Hi-Merging" in said and "b alone" in said
    told = json.loads((tmp_path / "out" / "merge.json").read_text())["hi"]
    counts = [len(file.read_text().splitlines()) for file in files.values()]
    assert [task["rows"] for task in told["test"]["tasks"]] == counts
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "This is not the paper" in page and "Conflicts of signs" in page


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ({}, {"tasks": {"a": "a.jsonl"}}, "--data-free asks no task, but --task gives one for a"),
        ({"p": "0.5,1"}, {}, "--p 0.5,1 gives several values"),
        ({"p": "0.3,0.6,1"}, {}, "--p 0.3,0.6,1 gives several values"),
        ({"stages": "model"}, {}, "--stages model prunes and scales each expert by its task"),
        ({"stages": "both"}, {}, "--stages both prunes and scales each expert by its task"),
        ({"rounds": 3}, {}, "--rounds says how tasks choose"),
        ({"share": 0.2}, {}, "--calibration-share says how tasks choose"),
        ({"split_seed": 0}, {}, "--split-seed says how tasks choose"),
        ({"s": "0.1:1:0.3"}, {}, "--s 0.1:1:0.3 gives several values"),
        ({"s": "0"}, {}, "--s tries 0"),
        ({"scope": "model"}, {}, "cannot be pruned apart"),
        ({"drop_useless": True}, {}, "without a task no expert is useless"),
        ({"max_evaluations": 9}, {}, "nothing is evaluated"),
        ({}, {"max_drop": "1pt"}, "--max-drop and --guard judge nothing without rows"),
        ({}, {"guards": ["prose.txt=3%"]}, "--max-drop and --guard judge nothing without rows"),
        ({}, {"tests": {"c": "c.jsonl"}}, "--test names c, which is no expert"),
    ],
)
def test_what_says_nothing_without_tasks(
    given: dict[str, Any], more: dict[str, Any], said: str, fighting: Models, tmp_path: Path
) -> None:
    options = HiOptions(data_free=True, **given)
    with pytest.raises(InputError, match=said):
        kanna.merge_hi(
            fighting["base"], {"a": fighting["a"], "b": fighting["b"]}, more.pop("tasks", {}),
            tmp_path / "out", options, evaluation=EvalOptions(), **more,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
