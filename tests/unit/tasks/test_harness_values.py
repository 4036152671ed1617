"""Scores of lm_eval that are no means of what it keeps of rows: judged the right way round, or not at all."""

import json
import math
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_model import WORDS, save_model

from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.harness import check_judged, run_harness
from kanna.tasks.scorers.harness_values import note_on, refuse_unjudged, scale_of
from kanna.tasks.verdict.paired import values_of
from kanna.tasks.verdict.tolerance import decide, parse_tolerance

metrics = pytest.importorskip("lm_eval.api.metrics")
ROWS = 30


def drawn(count: int = ROWS, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(-9, -1) for _ in range(count)]


def test_perplexity_is_of_log_likelihoods() -> None:
    kept = drawn()
    scale = scale_of("mine", metrics.perplexity(kept), kept, None)
    assert scale.judged and scale.likelihood and scale.higher_is_better is False
    assert scale.values == [{"nll": -one, "tokens": 1.0} for one in kept]


@pytest.mark.parametrize("name", ["weighted_perplexity", "bits_per_byte"])
def test_what_is_per_word_or_byte(name: str) -> None:
    kept = [(total, 3 + i % 5) for i, total in enumerate(drawn())]
    scale = scale_of(name, getattr(metrics, name)(kept), kept, True)  # whatever the task says
    assert scale.judged and scale.higher_is_better is False
    assert scale.values == [{"nll": -total, "tokens": count} for total, count in kept]


def test_brier_scores_are_means_of_squares() -> None:
    draw = random.Random(2)
    kept = []
    for _ in range(ROWS):
        odds = [draw.random() for _ in range(3)]
        kept.append((draw.randrange(3), [one / sum(odds) for one in odds]))
    scale = scale_of("brier_score", metrics.brier_score(kept), kept, False)
    assert scale.judged and scale.higher_is_better is False and not scale.likelihood
    right, odds = kept[4]
    wanted = [float(i == right) for i in range(3)]
    expected = sum((one - other) ** 2 for one, other in zip(odds, wanted, strict=True))
    assert scale.values[4] == {"brier_score": pytest.approx(expected)}


def test_means_stay_what_they_are() -> None:
    kept = [1.0, 0.0, True, 1]
    scale = scale_of("acc", 0.75, kept, True)
    assert scale.judged and scale.values == [{"acc": float(one)} for one in kept]


@pytest.mark.parametrize(
    ("score", "kept"),
    [
        (metrics.median([1.0, 2.0, 9.0]), [1.0, 2.0, 9.0]),
        (metrics.ter([("a b c", "a b"), ("d e f", "d e f")]), [("a b c", "a b"), ("d e f", "d e f")]),
        (metrics.chrf([("a b c", "a b"), ("d e f", "d e f")]), [("a b c", "a b"), ("d e f", "d e f")]),
        (metrics.nanmean([1.0, math.nan]), [1.0, math.nan]),
        (0.5, [None, 1.0]),
        (0.5, [(0, []), (1, [0.5])]),
    ],
)
def test_other_scores_are_not_judged(score: float, kept: list[Any]) -> None:
    scale = scale_of("it", score, kept, False)
    assert not scale.judged and "no mean of its rows" in (note_on("it", scale) or "")


def test_a_metric_of_which_nobody_says_whether_more_is_better() -> None:
    scale = scale_of("mine", 0.5, [0.0, 1.0], None)
    assert not scale.judged and "higher_is_better" in (note_on("mine", scale) or "")


def task(folder: Path, name: str, **config: Any) -> str:
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "c"),
        },
        "test_split": "test",
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | config))
    return str(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(7)
    texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 12))) for _ in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """One, and the same so far off that it finds everything unlikely but a few tokens."""
    directory = save_model(tmp_path_factory.mktemp("harness") / "model")
    both = [load(directory, dtype=torch.float32) for _ in range(2)]
    with torch.no_grad():
        both[1][0].get_output_embeddings().weight *= 3
    return both


LAST = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
}
WHOLE = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
LIKELIHOODS = {
    "perplexity": LAST | {"metric_list": [{"metric": "perplexity"}]},
    "byte_perplexity": WHOLE | {"metric_list": [{"metric": "byte_perplexity"}]},
    "bits_per_byte": WHOLE | {"metric_list": [{"metric": "bits_per_byte"}]},
}


def scores(models: list[tuple[Any, Any]], path: str) -> list[TaskScore]:
    return [run_harness(*model, [path], context=64)[0] for model in models]


@pytest.mark.parametrize("metric", LIKELIHOODS)
def test_a_worse_model_fails(metric: str, models: list[tuple[Any, Any]], folder: Path) -> None:
    base, new = scores(models, task(folder, f"of_{metric}", **LIKELIHOODS[metric]))
    assert new.value > 1.5 * base.value and base.higher_is_better is False
    found = decide(base, new, tolerance=parse_tolerance("5%"))
    assert found.status == "fail"
    assert found.difference == pytest.approx(new.value - base.value, rel=1e-6)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert decide(new, base, tolerance=parse_tolerance("5%")).status == "pass"
    seen = values_of(base, new)
    assert seen.score(seen.base) == pytest.approx(base.value) and seen.score(seen.new) == pytest.approx(
        new.value
    )


def test_what_no_verdict_can_be_made_of_is_refused_by_name(
    models: list[tuple[Any, Any]], folder: Path
) -> None:
    middle = task(
        folder,
        "middle",
        **LAST,
        metric_list=[{"metric": "perplexity", "aggregation": "median", "higher_is_better": False}],
    )
    base, new = scores(models, middle)
    with pytest.raises(InputError, match="lm_eval:middle: lm_eval's perplexity is no mean of its rows"):
        decide(base, new, tolerance=parse_tolerance("5%"))
    with pytest.raises(InputError, match="no mean of its rows"):  # though the base's rows were all there
        whole = [replace_values(record, "perplexity", 1.0) for record in base.records]
        decide(base.model_copy(update={"records": tuple(whole)}), new, tolerance=parse_tolerance("5%"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "perplexity", "aggregation": "median", "higher_is_better": False}, "no mean of its rows"),
        ({"metric": "perplexity"}, None),
        ({"metric": "acc"}, None),
    ],
)
def test_it_is_refused_before_any_work(given: dict[str, Any], said: str | None, folder: Path) -> None:
    path = task(folder, "early", **LAST, metric_list=[given])
    with pytest.raises(InputError, match=f"lm_eval:early: .*{said}") if said else nullcontext():
        check_judged([path])


def test_a_direction_that_nobody_gives_is_refused_before_any_work() -> None:
    aggregations = {"mine": metrics.mean, "f1": metrics.f1_score, "perplexity": metrics.perplexity}
    refuse_unjudged("t", "perplexity", aggregations, {})
    refuse_unjudged("t", "mine", aggregations, {"mine": False})
    for metric, said in (("mine", "whether more of mine"), ("f1", "no mean of its rows")):
        with pytest.raises(InputError, match=said):
            refuse_unjudged("t", metric, aggregations, {"f1": True})


def replace_values(record: Any, metric: str, value: float) -> Any:
    return replace(record, values={metric: value})


def test_where_less_is_better_a_one_is_a_wrong(folder: Path, models: list[tuple[Any, Any]]) -> None:
    wrong = task(
        folder,
        "wrong",
        **LAST,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": False}],
    )
    (base, _) = scores(models, wrong)
    assert base.higher_is_better is False
    assert all(record.right == (record.values["acc"] == 0.0) for record in base.records)
    worse = tuple(replace(one, values={"acc": float(i < 5)}) for i, one in enumerate(base.records))
    right = tuple(replace(one, values={"acc": 0.0}) for one in base.records)
    first, second = (base.model_copy(update={"records": some, "value": 0.0}) for some in (right, worse))
    found = decide(first, second, tolerance=parse_tolerance("5pt"))
    assert (found.lost, found.gained) == (5, 0)


def test_task_files_with_functions_and_of_groups(folder: Path, models: list[tuple[Any, Any]]) -> None:
    (folder / "mine.py").write_text("def last(doc):\n    return ' ' + doc['text'].split(' ')[-1]\n")
    path = Path(task(folder, "with_function", **(LAST | {"metric_list": [{"metric": "acc"}]})))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("doc_to_target")]
    path.write_text("\n".join([*lines, "doc_to_target: !function mine.last"]))
    (score,) = run_harness(*models[0], [str(path)], context=64)
    (plain,) = run_harness(
        *models[0], [task(folder, "plain", **LAST, metric_list=[{"metric": "acc"}])], context=64
    )
    assert score.records == plain.records and score.rows == ROWS
    several = folder / "several.yaml"
    several.write_text(yaml.safe_dump({"group": "several", "task": ["with_function", "plain"]}))
    both = run_harness(*models[0], [str(several)], context=64)
    assert sorted(one.task for one in both) == ["lm_eval:plain", "lm_eval:with_function"]
