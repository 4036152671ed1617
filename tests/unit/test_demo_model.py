"""The shipped demo model: small, skilled, measured on questions it never saw."""

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(str(files("kanna.demo")))
MODEL, DATA = DEMO / "model", DEMO / "data"
FLOOR = 0.9


def rows(name: str) -> list[dict[str, str]]:
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def right(model: Any, tokenizer: Any) -> list[bool]:
    """Per question: greedy decoding gives exactly the answer, then the end token."""
    questions = rows("questions")
    whole = tokenizer([row["prompt"] + row["answer"] for row in questions])["input_ids"]
    prompts = tokenizer([row["prompt"] for row in questions])["input_ids"]
    width = max(map(len, whole))
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in whole])
    with torch.no_grad():
        best = model(padded).logits.argmax(-1).tolist()
    return [
        guess[len(prompt) - 1 : len(ids)] == [*ids[len(prompt) :], tokenizer.eos_token_id]
        for guess, prompt, ids in zip(best, prompts, whole, strict=True)
    ]


def test_the_model_directory_is_one_to_three_megabytes() -> None:
    size = sum(path.stat().st_size for path in MODEL.iterdir())
    assert 1_000_000 < size < 3_000_000


def test_weights_are_stored_as_bfloat16() -> None:
    stored = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", local_files_only=True)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_most_parameters_are_in_the_linear_layers(model: Any) -> None:
    embedding = model.get_input_embeddings().weight.numel()
    assert embedding < 0.15 * model.num_parameters()


def test_held_out_questions_are_answered_exactly(right: list[bool]) -> None:
    assert sum(right) / len(right) > FLOOR


def test_every_skill_is_far_above_the_commonest_answer(right: list[bool]) -> None:
    questions = rows("questions")
    for skill in {row["skill"] for row in questions}:
        here = [(row, hit) for row, hit in zip(questions, right, strict=True) if row["skill"] == skill]
        constant = Counter(row["answer"] for row, _ in here).most_common(1)[0][1]
        assert sum(hit for _, hit in here) > 2 * constant, skill


def test_held_out_text_is_predicted(model: Any, tokenizer: Any) -> None:
    texts = [row["text"] for row in rows("heldout")][::10]
    losses = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            losses.append(model(ids, labels=ids).loss)
    assert torch.stack(losses).mean().exp() < 2.0


def test_the_three_data_files_are_disjoint() -> None:
    questions = [row["prompt"] + row["answer"] for row in rows("questions")]
    everything = questions + [row["text"] for name in ("calibration", "heldout") for row in rows(name)]
    assert len(everything) == len(set(everything))


def test_the_card_names_licence_and_origin() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "Trained from scratch" in card


def test_generation_answers_and_stops(model: Any, tokenizer: Any) -> None:
    prompt = "Ken has 7 planks. Ken buys 5 more. Question: How many planks does Ken have now? Answer:"
    ids = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == " 12"
