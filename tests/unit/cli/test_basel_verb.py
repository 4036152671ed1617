"""`kanna basel` as a user sees it: the dry run, what is said while it runs and at the end, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import WORDS

import kanna as package

Kanna = Callable[..., Any]


def words(start: int) -> str:
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(5))


def write(path: Path, answers: list[tuple[str, str]]) -> Path:
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(shared_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Rows to learn, and rows that the model as it is answers right (but for special tokens)."""
    model, tokenizer = package.load(shared_base)
    asked = []
    for start in range(41, 81):
        ids = torch.tensor([tokenizer(words(start))["input_ids"]])
        with torch.no_grad():
            token = int(model(ids).logits[0, -1].argmax())
        asked.append((words(start), f" {tokenizer.convert_ids_to_tokens(token)}"))
    learnt = [(words(start), f" {WORDS[(7 * start) % 90]}") for start in range(40)]
    return write(tmp_path / "train.jsonl", learnt), write(tmp_path / "asked.jsonl", asked)


def test_a_dry_run_writes_nothing_and_says_what_would_be(
    kanna: Kanna, shared_base: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ("basel", shared_base, "--data", files[0], "--keep", 0.4, "--epochs", "1,1,1", "--dry-run")
    ran = kanna(*words)
    assert ran.code == 0, ran.err
    for said in ("rank at the end", "least reachable --keep", "rows cut", "time of training", "read in all"):
        assert said in ran.out, said
    assert "dry run: nothing was written" in ran.out
    told = kanna(*words, "--json").json
    figures = told["figures"]
    assert told["plan"]["matrices"] == len(figures["ranks_by_spectra"]) + len(figures["dense_by_spectra"])
    assert figures["estimated_seconds"] > 0 and 0 < told["plan"]["least_keep"] < 0.4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl", "train.jsonl"]


def test_what_is_said_and_how_it_ends(
    kanna: Kanna, shared_base: Path, text: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    model = ("basel", shared_base, "--data", files[0], "--keep", 0.2, "--epochs", "0,2,1", "--text", text)
    ran = kanna(
        *model, "--task", files[1], "--metric", "greedy", "--max-drop", "1pt", "--out", tmp_path / "a"
    )
    assert ran.code == 3, ran.err
    assert "part 1, weights of bases 1/6, loss " in ran.err and ", event 1/1, 20.0% kept" in ran.err
    ends = ("rank after", "selected matrices: ", "with nothing left of these matrices", "weights of bases: ")
    for said in (
        *ends,
        "on rows that were not learnt",
        "text that was not learnt",
        "interval",
        "verdict: FAIL",
    ):
        assert said in ran.out, said
    asked = ("--task", files[1], "--metric", "greedy")
    lost = kanna(*model, *asked, "--out", tmp_path / "b", "--json")  # nothing is said of what may be lost
    assert lost.code == 0
    figures = lost.json["figures"]
    assert figures["text_loss_before"] > 0 and figures["text_loss_after"] > 0
    assert figures["least_keep_model"] < figures["keep_model"] < 1
    (task,) = lost.json["comparison"]["tasks"]
    assert task["base"] > 0.9 > 0.5 > task["new"]
