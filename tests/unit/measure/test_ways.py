"""kanna bench of whole numbers: which products a kernel made, and the bytes that were read."""

from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.cli.main import main
from kanna.forms import fast
from kanna.measure.bench import BenchOptions, _memory_of, bench
from kanna.measure.energy import NotMeasured
from kanna.measure.results import BenchResult

NO_METER = (NotMeasured("wall plug", "none"),)
LAYERS = 2 * 7


@pytest.fixture(scope="module")
def whole(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bits in groups of 32; read only."""
    out = tmp_path_factory.mktemp("whole") / "whole"
    kanna.quantize(grouped, out, kanna.QuantizeConfig(bits=4, group=32))
    return out


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_FASTER", {})
    monkeypatch.delenv(fast.FORCE, raising=False)


def measured(model: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {"contexts": (40,), "new_tokens": 3, "repeats": 1, "memory": False}
    options = BenchOptions(**(given | {"dtype": "bfloat16"} | changes))
    return bench(model, options=options, meters=NO_METER).to_dict()


def settings(model: Path, **changes: Any) -> Any:
    found = measured(model, **changes)["models"][0]["settings"]
    return {one["batch"]: one["integers"] for one in found}


ALL, NONE = {"kernel": LAYERS, "multiplied_out": 0}, {"kernel": 0, "multiplied_out": LAYERS}


def test_a_bench_says_which_way_products_were_made(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 tokens are too many for the kernel; float32 it does not know."""
    monkeypatch.setenv(fast.FORCE, "on")
    few, many = {"prefill": ALL, "decode": ALL}, {"prefill": NONE, "decode": ALL}
    assert settings(whole, batches=(1, 2)) == {1: few, 2: many}
    assert BenchResult.model_validate(wholly := measured(whole)).to_dict() == wholly
    assert settings(whole, dtype="float32")[1] == {"prefill": NONE, "decode": NONE}
    monkeypatch.setenv(fast.FORCE, "off")
    assert settings(whole)[1] == {"prefill": NONE, "decode": NONE}


def test_what_was_measured_is_what_is_said(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for one token, not for eight."""
    tokens: list[bool] = []

    def wins(kernel: Any, multiplied_out: Any) -> bool:
        tokens.append(kernel.args[0].numel() // kernel.args[0].shape[-1] == 1)
        return tokens[-1]

    monkeypatch.setattr(fast, "_wins", wins)
    assert settings(whole, contexts=(8,))[1] == {"prefill": NONE, "decode": ALL}
    assert tokens and len(tokens) < 2 * LAYERS  # a shape, and not a layer, is measured


def test_a_page_says_it_too(
    whole: Path, grouped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(fast.FORCE, "on")
    words = [
        "--batch",
        "2",
        "--context",
        "40",
        "--new-tokens",
        "3",
        "--repeats",
        "1",
        "--no-memory",
        "--dtype",
        "bfloat16",
    ]
    assert main(["bench", str(whole), "--against", str(grouped), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Products with whole numbers" in said
    assert f"0 by the 4-bit kernel, {LAYERS} multiplied out" in said
    assert main(["bench", str(grouped), *words]) == 0
    assert "whole numbers" not in capsys.readouterr().out


def test_bytes_of_whole_numbers_are_counted(whole: Path, grouped: Path) -> None:
    """Codes of 4 bits, a scale of 4 bytes and a zero-point of one for each group of 32 inputs, by hand."""
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    options = BenchOptions(contexts=(8,), new_tokens=3, repeats=1, memory=False)
    both = bench(whole, against=grouped, options=options, meters=NO_METER).models
    read = [one.settings[0].computed.bytes_per_token for one in both]
    assert read[1] - read[0] == 4 * weights - weights * (4 / 8 + 5 / 32)


def test_memory_of_whole_numbers(whole: Path) -> None:
    """Codes as they are, and twice where the kernel may have its own."""
    import torch

    from kanna.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(whole)
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    zeros, scales, sentinels = weights // 32, weights // 32, LAYERS
    others = 96 * 32 + 5 * 32 + sentinels + scales
    assert _memory_of(checkpoint, torch.float32) == 4 * others + weights // 2 + zeros
    assert _memory_of(checkpoint, torch.bfloat16) == 2 * others + 2 * (weights // 2 + zeros)


def test_scores_do_not_depend_on_what_was_faster(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, too: nothing is measured for an evaluation."""

    def never(*_: object) -> bool:
        raise AssertionError("measured")

    monkeypatch.setattr(fast, "_wins", never)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % 90}" for i in range(60)))
    text = tmp_path / "text.txt"
    found = [kanna.evaluate_text(whole, text, context=16, dtype="bfloat16").result for _ in range(2)]
    assert found[0] == found[1]


def test_another_word_in_the_environment_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(fast.FORCE, "maybe")
    assert main(["bench", str(whole), "--context", "8", "--new-tokens", "3", "--no-memory"]) == 2
    said = capsys.readouterr()
    assert "KANNA_INT4=maybe" in said.err + said.out and "on or off" in said.err + said.out
