"""Tasks of lm-evaluation-harness through kanna and through its own model class: the same figures."""

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
import yaml
from tiny_model import WORDS, save_model, save_tokenizer
from tokenizers.processors import TemplateProcessing

import process_state
from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.tasks.evaluate import prepare
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.harness import run_harness

lm_eval = pytest.importorskip("lm_eval")
CONTEXT, ROWS = 64, 24
CLOSE = 2e-4  # of two log-likelihoods


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def data() -> list[dict[str, Any]]:
    draw, rows = random.Random(7), []
    for number in range(ROWS):
        choices = list(dict.fromkeys(words(draw, 1, 5) for _ in range(3)))
        prompt = words(draw, 60, 90) if number == 3 else words(draw, 1, 12)  # one does not fit the context
        text = words(draw, 150, 200) if number == 4 else words(draw, 5, 30)  # one has several windows
        rows.append(
            {"prompt": prompt, "choices": choices, "label": draw.randrange(len(choices)), "text": text}
        )
    return rows


def metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


TASKS: dict[str, dict[str, Any]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": metrics("acc", "acc_norm"),
    },
    "tiny_mutual": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": metrics("acc", "acc_mutual_info"),
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": one} for one in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "tiny_cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{' ' + choices[0]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, *metrics("acc")],
    },
    "tiny_write": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {
            "until": [" w7"],
            "max_gen_toks": 5,
            "do_sample": False,
            "temperature": 0.0,
        },
        "filter_list": [
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(w[0-9])"}]},
            {"name": "second", "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}]},
        ],
        "metric_list": metrics("exact_match"),
    },
}


def save_task(folder: Path, name: str, config: dict[str, Any], rows: Path) -> Path:
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(common | config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, data())))
    for name, config in TASKS.items():
        save_task(folder, name, config, rows)
    return folder


@pytest.fixture(scope="module", params=["plain", "begins"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model, and a tokenizer that puts a token before every text or does not."""
    directory = save_model(tmp_path_factory.mktemp("harness") / "model")
    if request.param == "begins":
        save_tokenizer(directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        tokenizer.save_pretrained(directory)
    model, tokenizer = load(directory, dtype=torch.float32)
    assert (tokenizer("w1")["input_ids"][0] == 1) == (request.param == "begins")
    return model, tokenizer


@pytest.fixture(scope="module")
def ours(asked: tuple[Any, Any], folder: Path) -> dict[str, TaskScore]:
    found = run_harness(*asked, list(TASKS), include=folder, context=CONTEXT, batch_tokens=200)
    return {score.task.removeprefix("lm_eval:"): score for score in found}


@pytest.fixture(scope="module")
def theirs(asked: tuple[Any, Any], folder: Path) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = asked
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=CONTEXT, device="cpu")
    with process_state.given_back():  # it seeds everything
        return lm_eval.simple_evaluate(  # type: ignore[no-any-return]
            harness,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )


def samples(theirs: dict[str, Any], name: str, kept: str = "none") -> list[dict[str, Any]]:
    found = [one for one in theirs["samples"][name] if one["filter"] == kept]
    return sorted(found, key=lambda one: one["doc_id"])


def result(theirs: dict[str, Any], name: str, metric: str, kept: str = "none") -> float:
    return float(theirs["results"][name][f"{metric},{kept}"])


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_mutual"])
def test_choices(name: str, ours: dict[str, TaskScore], theirs: dict[str, Any]) -> None:
    other = samples(theirs, name)
    metrics = [one for one in ("acc", "acc_norm", "acc_mutual_info") if one in other[0]]
    assert len(ours[name].records) == len(other) == ROWS and len(metrics) == 2
    for record, sample in zip(ours[name].records, other, strict=True):
        count = len(sample["doc"]["choices"])
        sums = torch.tensor([one[0] for one in sample["filtered_resps"]][:count], dtype=torch.float64)
        lead = float(sums.topk(2).values.diff().abs())
        assert lead > CLOSE  # else rounding decides, and another draw of rows is needed
        assert record.chosen == int(sums.argmax())
        assert record.predicted == f" {sample['doc']['choices'][record.chosen]}"
        assert record.label == sample["doc"]["label"]
        assert record.values["log_loss"] == pytest.approx(-float(sums[record.label]), abs=1e-4)
        assert record.confidence == pytest.approx(float(sums.softmax(0).max()), abs=1e-4)
        assert {metric: record.values[metric] for metric in metrics} == {one: sample[one] for one in metrics}
        assert record.right == (sample["acc"] == 1.0)
    for metric in metrics:
        assert ours[name].metrics[metric] == pytest.approx(result(theirs, name, metric))
    assert (ours[name].kind, ours[name].metric, ours[name].higher_is_better) == ("choice", "acc", True)
    labels = [row["label"] for row in data()]
    assert ours[name].floors["constant"] == max(map(labels.count, labels)) / ROWS


def test_sums_over_windows(ours: dict[str, TaskScore], theirs: dict[str, Any]) -> None:
    score = ours["tiny_text"]
    for record, sample in zip(score.records, samples(theirs, "tiny_text"), strict=True):
        assert record.values["nll"] == pytest.approx(-float(sample["filtered_resps"][0]), rel=1e-5)
        assert record.values["tokens"] == len(sample["doc"]["text"].split())
        assert record.right is None
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert score.metrics[metric] == pytest.approx(result(theirs, "tiny_text", metric), rel=1e-5)
    assert (score.kind, score.metric, score.higher_is_better) == ("text", "word_perplexity", False)


def test_single_continuations(ours: dict[str, TaskScore], theirs: dict[str, Any]) -> None:
    for record, sample in zip(ours["tiny_cloze"].records, samples(theirs, "tiny_cloze"), strict=True):
        assert record.values["perplexity"] == pytest.approx(sample["perplexity"], abs=1e-4)
        assert record.values["acc"] == sample["acc"]
    perplexity = ours["tiny_cloze"].metrics["perplexity"]
    assert perplexity == pytest.approx(result(theirs, "tiny_cloze", "perplexity"), rel=1e-4)


def test_written_texts(ours: dict[str, TaskScore], theirs: dict[str, Any]) -> None:
    score = ours["tiny_write"]
    for record, sample in zip(score.records, samples(theirs, "tiny_write", "first"), strict=True):
        assert [record.predicted] == sample["filtered_resps"][0]
        assert record.expected == sample["target"]
        assert record.values["exact_match"] == sample["exact_match"]
    assert score.metrics["exact_match"] == pytest.approx(result(theirs, "tiny_write", "exact_match", "first"))
    second = result(theirs, "tiny_write", "exact_match", "second")
    assert score.metrics["exact_match (second)"] == pytest.approx(second)
    assert len({record.predicted for record in score.records}) > 5


def test_what_depends_on_nothing_else(
    asked: tuple[Any, Any], ours: dict[str, TaskScore], folder: Path
) -> None:
    (few,) = run_harness(*asked, [str(folder / "tiny_choice.yaml")], limit=5, context=CONTEXT)
    whole = ours["tiny_choice"].records[:5]
    assert [one.values for one in few.records] == [pytest.approx(one.values, abs=1e-4) for one in whole]
    assert few.settings["limit"] == 5 and few.settings["lm_eval"] == lm_eval.__version__


@pytest.fixture
def alone(asked: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    yield asked


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"generation_kwargs": {"until": [], "do_sample": True}}, "samples its answers"),
        ({"generation_kwargs": {"until": [], "temperature": 0.7}}, "samples its answers"),
        ({"generation_kwargs": {"until": [], "num_beams": 4}}, "asks for num_beams"),
        ({"generation_kwargs": {"until": []}}, "256 new tokens, which leave no room"),
        ({"output_type": "loglikelihood", "doc_to_target": "{{text}} {{text}} {{text}}"}, "continuation has"),
    ],
)
def test_what_kanna_does_not_do_is_refused(
    config: dict[str, Any], message: str, asked: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    path = save_task(tmp_path, "other", TASKS["tiny_write"] | config, folder / "rows.jsonl")
    with pytest.raises(InputError, match=message):
        run_harness(*asked, [str(path)], context=CONTEXT)


def test_nothing_is_fetched(
    asked: tuple[Any, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    called = []

    def refuse(*address: Any, **_: Any) -> Any:
        called.append(address)
        raise OSError("no network")

    for place in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    elsewhere = {"dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    path = save_task(tmp_path, "far", TASKS["tiny_choice"] | elsewhere, folder / "rows.jsonl")
    with pytest.raises(InputError, match="lm_eval could not run far"):
        run_harness(*asked, [str(path)], context=CONTEXT)
    assert not called
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_unknown_tasks_are_refused_before_the_model_is_loaded(tmp_path: Path, folder: Path) -> None:
    directory = save_model(tmp_path / "model")
    with pytest.raises(InputError, match=r"knows no task 'tiny_choise'\n.*tiny_choice"):
        prepare(directory, ["lm_eval:tiny_choise"], EvalOptions(include=folder))
    with pytest.raises(InputError, match="names no task"):
        (tmp_path / "no.yaml").write_text("a: 1")
        prepare(directory, [f"lm_eval:{tmp_path / 'no.yaml'}"], EvalOptions())
