"""Numbers and names that no machine can do anything with: refused at once, by name."""

import importlib
import json

import pytest

PLAIN = ("--keep", "0.7", "--method", "plain", "--align", "1")
HUGE = (2**64, 10**40)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [
        {"prompt": f"w{i % 89} w{i * i % 83}", "choices": [" w1", " w2"], "label": i % 2} for i in range(120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("seed", HUGE)
def test_a_seed_beyond_what_generators_take(kanna, shared_base, task, tmp_path, seed):
    out = tmp_path / "out"
    for words in (
        ("lowrank", shared_base, *PLAIN, "--out", out),
        ("laser", "apply", shared_base, "--edit", "down:1:0.5", "--out", out),
        ("laser", "search", shared_base, "--task", task, "--out", out),
        ("bench", shared_base, "--no-memory"),
        ("task", "split", task, "--out", out),
    ):
        ran = kanna(*words, "--seed", seed, "-q")
        assert ran.code == 2 and "seed" in ran.err, (words, ran.err)
        assert "Traceback" not in ran.err and "unexpected" not in ran.err
    assert not out.exists()


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_largest_and_the_smallest_seed_work(kanna, shared_base, tmp_path, seed):
    out = tmp_path / "out"
    words = ("lowrank", shared_base, "--keep", "0.7", "--method", "plain", "--align", "1", "--seed", seed)
    assert kanna(*words, "--out", out, "-q").code == 0
    words = ("laser", "apply", shared_base, "--edit", "down:1:0.5", "--mode", "random", "--seed", seed)
    assert kanna(*words, "--out", tmp_path / "edited", "-q").code == 0


def test_a_device_that_holds_nothing(kanna, shared_base, task, tmp_path, monkeypatch):
    # Modules that take `load` by its name are imported before, or the first of them would keep what fails.
    names = ("runs.probe", "tasks.scorers.generation", "measure.bench")
    modules = [importlib.import_module(f"kanna.{name}") for name in ("checkpoint.loader", *names)]
    for module in modules:
        monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("loaded"))
    for words in (
        ("lowrank", shared_base, *PLAIN, "--out", tmp_path / "out"),
        ("laser", "apply", shared_base, "--edit", "down:1:0.5", "--out", tmp_path / "out"),
        ("eval", shared_base, "--task", task),
        ("bench", shared_base, "--context", 8, "--new-tokens", 3, "--no-memory"),
        ("generate", shared_base, "--prompt", "w1 w2"),
    ):
        ran = kanna(*words, "--device", "meta", "-q")
        assert ran.code == 2 and "'meta' cannot be used" in ran.err, (words, ran.err)


@pytest.mark.parametrize("threads", [1_000_000, 0, -1])
def test_threads_that_no_machine_has(kanna, shared_base, threads):
    for words in (
        ("--threads", threads, "inspect", shared_base),
        ("inspect", shared_base, "--threads", threads),
    ):
        ran = kanna(*words)
        assert ran.code == 2 and "--threads" in ran.err


def test_a_metric_without_a_task(kanna, shared_base, text, tmp_path):
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    steps = [{"lowrank": {"keep": 0.7, "method": "plain", "align": 1}}]
    recipe.write_text(
        json.dumps({"model": str(shared_base), "evaluation": {"metric": "acc"}, "steps": steps})
    )
    for words in (
        ("lowrank", shared_base, *PLAIN, "--metric", "acc", "--out", out),
        ("laser", "apply", shared_base, "--edit", "down:1:0.5", "--metric", "acc", "--out", out),
        ("eval", shared_base, "--text", text, "--metric", "acc"),
        ("eval", shared_base, "--metric", "acc"),
        ("run", recipe, "--out", out),
    ):
        ran = kanna(*words, "-q")
        assert ran.code == 2 and "says nothing without a task" in ran.err, (words, ran.err)
    assert not out.exists()


def test_a_metric_of_a_search_is_no_metric_without_a_task(kanna, shared_base, task, tmp_path):
    """The model that it ends with is held against nothing; the search itself has a task."""
    words = (
        "laser",
        "search",
        shared_base,
        "--task",
        task,
        "--metric",
        "acc",
        "--rho",
        "0.5",
        "--roles",
        "down",
    )
    ran = kanna(*words, "--out", tmp_path / "out", "-q")
    assert ran.code == 0, ran.err
