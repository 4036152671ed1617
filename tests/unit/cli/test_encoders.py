"""Masked language models and classification heads, from task file to verdict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_encoders import HEADS, save_encoder

PLAIN = ("--method", "plain", "--align", "1", "-q")
NAMES = {0: "negative", 1: "positive"}
CLASSIFIER = "ForSequenceClassification"


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """A task file."""

    def write(*fields: dict[str, Any]) -> Path:
        path = tmp_path / "task.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in fields))
        return path

    return write


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "roberta", "Roberta")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "bert", "Bert", CLASSIFIER, id2label=NAMES)


def cloze(number: int) -> dict[str, Any]:
    """A row with choices of one token and of several."""
    words = [HEADS[(number * k + 3) % 8] for k in range(1, 4)]
    choices = list(dict.fromkeys((words[0], f"{words[1]} {words[2]}", words[2])))
    place = "<mask>" if number % 2 else "[MASK]"
    prompt = f"{HEADS[number % 8]} {place} {HEADS[number * 5 % 8]}."
    return {"prompt": prompt, "choices": choices, "label": number % len(choices)}


def opinion(number: int) -> dict[str, Any]:
    prompt = f"{HEADS[number % 8]} {HEADS[number * 3 % 8]}fe {HEADS[number // 8 % 8]}"
    return {"prompt": prompt, "choices": ["Positive", "Negative"], "label": number % 2}


def test_eval_of_a_masked_model(kanna, masked, rows):
    asked = [cloze(number) for number in range(12)]
    found = kanna("eval", masked, "--task", rows(*asked), "--json").json["tasks"][0]
    model = transformers.RobertaForMaskedLM.from_pretrained(masked).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    right = 0
    for row, record in zip(asked, found["records"], strict=True):
        sums = []
        for choice in row["choices"]:
            target = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            text = row["prompt"].replace("[MASK]", "<mask>").replace("<mask>", "<mask>" * len(target))
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits[ids == tokenizer.mask_token_id].log_softmax(-1)
            sums.append(float(logs.gather(1, torch.tensor(target)[:, None]).sum()))
        right += sums.index(max(sums)) == row["label"]
        assert record["chosen"] == sums.index(max(sums))
        assert record["values"]["log_loss"] == pytest.approx(-sums[row["label"]], abs=1e-4)
    assert (found["metric"], found["value"]) == ("acc", right / len(asked))
    assert 0 < right < len(asked)
    assert all("warning: the model does no" in note for note in found["notes"])


def test_answers_of_a_masked_model(kanna, masked, rows):
    path = rows(*({"prompt": f"ka {one}", "answer": f"{one} mi"} for one in HEADS))
    ran = kanna("eval", masked, "--task", path, "--json")
    found = ran.json["tasks"][0]
    assert ran.code == 0 and found["metric"] == "greedy"
    assert {"top1", "top5", "top10", "log_loss", "log_loss_per_token"} <= found["metrics"].keys()
    assert any("told the length" in note for note in found["notes"])
    by_loss = kanna("eval", masked, "--task", path, "--metric", "log_loss_per_token", "--json").json["tasks"][
        0
    ]
    assert by_loss["value"] == found["metrics"]["log_loss_per_token"]


def test_eval_of_a_classifier(kanna, classifier, rows):
    asked = [opinion(number) for number in range(16)]
    found = kanna("eval", classifier, "--task", rows(*asked), "--json").json["tasks"][0]
    model = transformers.BertForSequenceClassification.from_pretrained(classifier).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    for row, record in zip(asked, found["records"], strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([tokenizer(row["prompt"])["input_ids"]])).logits[0].log_softmax(-1)
        best = int(logs.argmax())
        assert record["predicted"].lower() == NAMES[best]
        wanted = 1 if row["label"] == 0 else 0
        assert record["values"]["log_loss"] == pytest.approx(-float(logs[wanted]), abs=1e-4)
        assert record["confidence"] == pytest.approx(float(logs[best].exp()), abs=1e-4)
    assert found["metrics"].keys() >= {"acc", "log_loss", "calibration_error"}
    assert not {"acc_norm", "log_loss_per_token"} & found["metrics"].keys()


@pytest.mark.parametrize(("kind", "row", "keep"), [("masked", cloze, 0.1), ("classifier", opinion, 0.4)])
def test_compare_with_blame(kanna, request, rows, tmp_path, kind, row, keep):
    base, out = request.getfixturevalue(kind), tmp_path / "small"
    path = rows(*(row(number) for number in range(40)))
    assert kanna("lowrank", base, *PLAIN, "--keep", keep, "--out", out).code == 0
    ran = kanna("compare", base, out, "--task", path, "--max-drop", "90pt", "--blame", "--json")
    found = ran.json
    task = found["tasks"][0]
    assert task["decision"]["status"] == "pass" and found["distribution"] is None
    above = task["base"] > task["floors"]["constant"]  # else a pass says nothing
    assert above or found["status"] == "empty"
    assert ran.code == (0 if found["status"] == "pass" else 3), ran.err
    assert any("two causal models" in note for note in found["notes"])
    assert task["lost"] + task["gained"] > 0
    assert max(one["repaired"] + one["undone"] for one in found["blame"]) > 0
    same = kanna("compare", base, base, "--task", path, "--max-drop", "0pt", "--json")
    assert same.code == 0 and same.json["notes"] == ["the weights are bit-identical"]


def test_a_verdict_ends_the_compression_of_an_encoder(kanna, masked, rows, tmp_path):
    path = rows(*(cloze(number) for number in range(12)))
    words = ("--task", path, "--max-drop", "99pt", "--accept-empty", "--out", tmp_path / "small")
    ran = kanna("lowrank", masked, *PLAIN, "--keep", 0.4, *words)
    assert ran.code == 0, ran.err
    recorded = json.loads((tmp_path / "small" / "kanna.json").read_text())
    assert "task.jsonl" in json.dumps(recorded)


def refused(ran: Any, *said: str) -> None:
    assert ran.code == 2, (ran.out, ran.err)
    assert "Traceback" not in ran.err and not ran.out
    message = " ".join(ran.err.split())
    assert all(one in message for one in said), message


def test_what_a_masked_model_cannot_be_asked(kanna, masked, rows, text):
    answers = rows({"prompt": "ka lo", "answer": "mi"}, {"prompt": "ka mi", "answer": "lo"})
    for metric in ("exact", "contains", "f1", "regex:a", "cmd:cat"):
        ran = kanna("eval", masked, "--task", answers, "--metric", metric)
        refused(ran, "masked language model", metric, "greedy, top1, top5, top10, log_loss")
    refused(kanna("eval", masked, "--text", text), "no causal language model", "perplexity of text needs one")
    refused(kanna("eval", masked, "--task", "lm_eval:arc_easy"), "lm_eval", "no causal language model")
    refused(kanna("eval", masked, "--task", answers, "--chat"), "--chat")


def test_rows_that_a_masked_model_cannot_take(kanna, masked, rows):
    two = rows({"prompt": "ka <mask> lo [MASK]", "answer": "mi"})
    refused(kanna("eval", masked, "--task", two), "2 mask markers", "<mask>")
    long = rows({"prompt": "ka", "answer": "mi " * 50})
    refused(kanna("eval", masked, "--task", long), "the model reads 40")


def test_a_tokenizer_without_a_mask_token(kanna, rows, tmp_path):
    directory = save_encoder(tmp_path / "model", "Bert")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("mask_token") == "[MASK]"
    path.write_text(json.dumps(config))
    refused(kanna("eval", directory, "--task", rows({"prompt": "ka", "answer": "lo"})), "no mask token")


@pytest.mark.parametrize("head", ["ForMaskedLM", CLASSIFIER])
def test_weights_that_are_not_numbers(kanna, rows, tmp_path, head):
    directory = save_encoder(tmp_path / "model", "DistilBert", head, id2label=NAMES)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["distilbert.transformer.layer.0.ffn.lin1.weight"][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    ran = kanna("eval", directory, "--task", rows({**opinion(1)}, {**opinion(2)}))
    refused(ran, "not finite")


def test_what_a_classifier_cannot_be_asked(kanna, classifier, rows, text):
    strange = rows(opinion(1), {"prompt": "ka", "choices": ["positive", "mixed"], "label": 1})
    ran = kanna("eval", classifier, "--task", strange)
    refused(ran, "row 2 has the choice 'mixed'", "negative, positive")
    ran = kanna("eval", classifier, "--task", rows(opinion(1)), "--metric", "acc_norm")
    refused(ran, "acc_norm", "acc, log_loss")
    ran = kanna("eval", classifier, "--task", rows({"prompt": "ka", "answer": "positive"}))
    refused(ran, "no choices", "negative, positive")
    refused(kanna("eval", classifier, "--text", text), "no causal language model")
    refused(kanna("eval", classifier, "--task", "lm_eval:arc_easy"), "lm_eval")


def test_other_heads_are_refused(kanna, rows, tmp_path):
    path = rows(opinion(1), opinion(2))
    ones = save_encoder(tmp_path / "one", "Bert", CLASSIFIER, num_labels=1)
    refused(kanna("eval", ones, "--task", path), "does not choose one of several labels", "1 label")
    several = save_encoder(
        tmp_path / "several", "Bert", CLASSIFIER, id2label=NAMES, problem_type="multi_label_classification"
    )
    refused(kanna("eval", several, "--task", path), "multi_label_classification")
    tagger = save_encoder(tmp_path / "tagger", "Bert", "ForTokenClassification")
    refused(kanna("eval", tagger, "--task", path), "no architecture that can be evaluated", "ForMaskedLM")


@pytest.mark.parametrize(("head", "part"), [("ForMaskedLM", "vocab_"), (CLASSIFIER, "classifier")])
def test_a_model_without_the_weights_of_its_head(kanna, rows, tmp_path, head, part):
    directory = save_encoder(tmp_path / "model", "DistilBert", head, id2label=NAMES)
    path = directory / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(kept, path, {"format": "pt"})
    ran = kanna("eval", directory, "--task", rows(opinion(1), opinion(2)))
    refused(ran, "lacks the tensor", part, f"which DistilBert{head} needs")
