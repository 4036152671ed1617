"""Low-rank replacement on trained models: size, quality, and what users see."""

import subprocess
import sys
from pathlib import Path

import pytest

from kanna.checkpoint.reader import Checkpoint
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.runs.evaluations import evaluate_text
from kanna.runs.runner import RunResult

TOKENS = 4096


def compress(model: Path, text: Path, out: Path, cache: Path, **settings: object) -> RunResult:
    config = parse_config({"context": 256, "tokens": 8192, **settings})
    return lowrank(model, out, config, calibration=text / "calibration.jsonl", cache=cache)


def perplexity(model: Path, text: Path) -> float:
    scored = evaluate_text(model, text / "wikitext2-test.txt", context=256, stride=256, tokens=TOKENS)
    return scored.result.perplexity


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("keep", [0.9, 0.8, 0.6])
def test_defaults_keep_the_size_promised_and_beat_plain(
    zoo: Path, text: Path, tmp_path: Path, cache: Path, keep: float
) -> None:
    base = perplexity(zoo / "base", text)
    result = compress(zoo / "base", text, tmp_path / "default", cache, keep=keep)
    plain = compress(
        zoo / "base", text, tmp_path / "plain", cache, keep=keep, method="plain", allocation="uniform"
    )
    assert result.passed and result.out is not None and plain.out is not None
    assert keep - 0.005 <= result.figures["keep_selected"] <= keep
    written = Checkpoint.open(result.out)
    assert written.bytes == result.figures["model_bytes_after"]
    assert written.bytes < Checkpoint.open(zoo / "base").bytes
    ours, theirs = perplexity(result.out, text), perplexity(plain.out, text)
    assert ours < theirs
    assert ours < 1.5 * base


def test_plain_transformers_loads_after_import_kanna_and_refuses_without(
    zoo: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    out = compress(zoo / "base", text, tmp_path / "out", cache, keep=0.8).out
    load = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(out)!r})"
    with_kanna = subprocess.run(
        [sys.executable, "-c", f"import kanna; {load}"], capture_output=True, text=True
    )
    without = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert with_kanna.returncode == 0, with_kanna.stderr
    assert without.returncode != 0
    assert "ignore_mismatched_sizes" in without.stderr


@pytest.mark.slow
def test_a_real_model_keeps_its_perplexity_within_bounds(
    smollm2: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    """C7 on a model with grouped queries and tied embeddings: at most 2.5 times dense at keep 0.8."""
    base = perplexity(smollm2, text)
    out = compress(
        smollm2, text, tmp_path / "out", cache, keep=0.8, method="whitened", gradient_tokens=4096
    ).out
    assert out is not None
    assert perplexity(out, text) <= 2.5 * base
