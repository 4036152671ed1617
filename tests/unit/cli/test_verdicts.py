"""Comparisons from end to end: what is counted, shown, blamed, kept and recorded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from statsmodels.stats.proportion import proportion_confint
from tiny_model import WORDS, save_model, save_tokenizer

import kanna as package
from kanna.checkpoint import lineage
from kanna.runs.blame import blame, changed_modules
from kanna.runs.compare import compare
from kanna.runs.criteria import criteria_of

WEIGHTS = "model.safetensors"


def words(start: int, count: int, step: int = 1) -> str:
    return " ".join(WORDS[(start + step * i) % len(WORDS)] for i in range(count))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Choices."""
    rows = [
        {
            "prompt": words(7 * i, 5),
            "choices": [f" {WORDS[(11 * i + k) % 90]}" for k in range(3)],
            "label": i % 3,
        }
        for i in range(80)
    ]
    return write_rows(tmp_path / "task.jsonl", rows)


def changed(base: Path, to: Path, names: list[str], noise: float = 0.3) -> Path:
    """A copy of a model with noise on some matrices."""
    shutil.copytree(base, to)
    tensors = load_file(to / WEIGHTS)
    generator = torch.Generator().manual_seed(2)
    for name in names:
        tensors[f"{name}.weight"] += noise * torch.randn(tensors[f"{name}.weight"].shape, generator=generator)
    save_file(tensors, to / WEIGHTS, metadata={"format": "pt"})
    return to


@pytest.fixture
def damaged(base: Path, tmp_path: Path) -> Path:
    return changed(base, tmp_path / "damaged", ["model.layers.0.mlp.up_proj"])


def own_answers(kanna: Callable[..., Any], model: Path, path: Path, count: int = 30) -> Path:
    """Questions of which a model writes the right answer by itself: one to four words."""
    prompts = [words(13 * i, 6, 7) for i in range(count)]
    rows = []
    for i, prompt in enumerate(prompts):
        asked = ("--prompt", prompt, "--max-new-tokens", 1 + i % 4, "--raw", "--json", "-q")
        said = kanna("generate", model, *asked).json["continuations"][0]["text"]
        rows.append({"prompt": prompt, "answer": said.strip() or "w1"})
    return write_rows(path, rows)


def strict(text: str) -> Any:
    """JSON without NaN and infinities, which few readers take."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("examples", [0, 2, 1000])
def test_the_worst_flips_are_shown_first(kanna, base, damaged, task, examples):
    asked = ("--task", task, "--json", "-q")
    found = kanna("compare", base, damaged, *asked, "--examples", examples).json["tasks"][0]
    records = [kanna("eval", one, *asked).json["tasks"][0]["records"] for one in (base, damaged)]
    flipped = [
        (not one["right"], one["values"]["log_loss"] - two["values"]["log_loss"], one["row"])
        for one, two in zip(*records, strict=True)
        if one["right"] != two["right"]
    ]
    assert len(flipped) == found["lost"] + found["gained"] > 2
    assert [flip["row"] for flip in found["flips"]] == [row for *_, row in sorted(flipped)][:examples]
    for flip in found["flips"]:
        one, two = (some[flip["row"]] for some in records)
        assert (flip["base"], flip["new"]) == (one["predicted"], two["predicted"])
        assert (flip["expected"] == flip["base"]) == (flip["direction"] == "lost")


def test_lost_answers_are_those_that_the_new_model_writes(kanna, base, damaged, tmp_path):
    """Scored by likelihood, which writes nothing; in the words that generate has for the prompt."""
    task = own_answers(kanna, base, tmp_path / "own.jsonl")
    found = kanna("compare", base, damaged, "--task", task, "--no-distribution", "--json", "-q").json[
        "tasks"
    ][0]
    lost = [flip for flip in found["flips"] if flip["direction"] == "lost"]
    assert found["metric"] == "greedy" and len(lost) > 2
    for flip in lost:
        asked = ("--prompt", flip["prompt"], "--max-new-tokens", 8, "--raw", "--json", "-q")
        said = kanna("generate", damaged, *asked).json["continuations"][0]["text"]
        written = said.split("\n")[0].strip() or "(nothing)"
        assert flip["new"] == written[: len(flip["new"])] and flip["new"] != flip["expected"]
        assert "another answer" not in flip["new"] and flip["base"] == "right"
    again = kanna("compare", base, damaged, "--task", task, "--no-distribution", "--json", "-q").json[
        "tasks"
    ][0]
    assert again["flips"] == found["flips"]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate_proj"])
def test_the_damaged_matrix_is_blamed_first(kanna, base, task, tmp_path, name):
    """Another matrix differs too, but too little to matter."""
    other = changed(base, tmp_path / "other", [name], 0.5)
    other = changed(other, tmp_path / "both", ["model.layers.0.mlp.down_proj"], 1e-6)
    found = kanna("compare", base, other, "--task", task, "--blame", "--json", "-q").json
    assert found["tasks"][0]["lost"] > 0
    assert [one["matrix"] for one in found["blame"]] == [name, "model.layers.0.mlp.down_proj"]
    assert found["blame"][0]["repaired"] == found["tasks"][0]["lost"]
    assert found["blame"][0]["undone"] == found["tasks"][0]["gained"]
    assert found["blame"][1]["repaired"] == found["blame"][1]["undone"] == 0


def test_blame_of_a_low_rank_model(kanna, shared_base, shared_small, task):
    found = kanna("compare", shared_base, shared_small, "--task", task, "--blame", "--json", "-q").json
    replaced = kanna("inspect", shared_small, "--json").json["matrices"]
    assert {one["matrix"] for one in found["blame"]} == {one["name"] for one in replaced if one["rank"]}


def test_blame_of_transposed_and_fused_matrices(kanna, task, tmp_path):
    sizes = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 96,
        "n_positions": 64,
        "initializer_range": 0.3,
    }
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    base, small = tmp_path / "gpt2", tmp_path / "small"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(base)
    save_tokenizer(base)
    asked = ("--keep", 0.4, "--method", "plain", "--align", 1, "--select", "q,v,fc_in", "--out", small, "-q")
    assert kanna("lowrank", base, *asked).code == 0
    found = kanna("compare", base, small, "--task", task, "--blame", "--json", "-q").json
    parts = ("attn.c_attn", "mlp.c_fc")
    assert {one["matrix"] for one in found["blame"]} == {
        f"transformer.h.{i}.{part}" for i in range(2) for part in parts
    }
    assert max(one["repaired"] for one in found["blame"]) > 0


def test_blame_asks_as_the_task_was_asked(kanna, base, damaged, tmp_path):
    """Written answers of several lengths, with costs that name answers of rows that did not flip."""
    task = own_answers(kanna, base, tmp_path / "own.jsonl")
    answers = sorted({json.loads(line)["answer"] for line in task.read_text().splitlines()})
    costs = tmp_path / "costs.yaml"
    costs.write_text(json.dumps({answers[0]: dict.fromkeys(answers[1:], 2)}))
    asked = ("--task", task, "--metric", "contains", "--costs", costs, "--blame", "--json", "-q")
    found = kanna("compare", base, damaged, *asked).json
    one = found["tasks"][0]
    assert one["base"] > 0.9 and one["lost"] > 0
    assert found["blame"] == [
        {"matrix": "model.layers.0.mlp.up_proj", "repaired": one["lost"], "undone": one["gained"]}
    ]


@pytest.mark.parametrize("other", [{"hidden_size": 48}, {"num_hidden_layers": 1}, {"intermediate_size": 48}])
def test_models_of_other_kinds_have_nothing_to_blame(kanna, base, task, tmp_path, other):
    found = kanna(
        "compare", base, save_model(tmp_path / "other", **other), "--task", task, "--blame", "--json", "-q"
    )
    assert found.code == 0 and found.json["blame"] is None
    assert "not of one kind" in " ".join(found.json["notes"])


def test_blame_leaves_the_model_as_it_was(base, damaged):
    first, second = (package.load(one)[0] for one in (base, damaged))
    before = {name: value.clone() for name, value in second.state_dict().items()}
    assert changed_modules(first, second) == ["model.layers.0.mlp.up_proj"]
    seen = []

    def ask() -> list[bool]:
        seen.append(
            torch.equal(second.model.layers[0].mlp.up_proj.weight, first.model.layers[0].mlp.up_proj.weight)
        )
        return [True, False, True]

    (found,) = blame(first, second, [True, True, False], ask)
    assert seen == [True] and (found.repaired, found.undone) == (1, 0)
    assert all(torch.equal(before[name], value) for name, value in second.state_dict().items())


def other_tokenizer(model: Path) -> None:
    """The same words under other numbers."""
    path = model / "tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    for one, two in zip(WORDS[::2], WORDS[1::2], strict=True):
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(data))


def test_other_tokenizers(kanna, base, task, text, tmp_path):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    other_tokenizer(other)
    ran = kanna("compare", base, other, "--task", task, "--max-drop", "0pt", "--json", "-q")
    # The weights are bit-identical, but they read other numbers.
    assert ran.code == 3 and ran.json["tasks"][0]["lost"] > 0
    assert ran.json["distribution"] is None
    assert "tokenizers cut text differently" in " ".join(ran.json["notes"])
    refused = kanna("compare", base, other, "--task", text, "--max-drop", "1%", "-q")
    assert refused.code == 2 and "perplexity is per token" in refused.err


def test_vocabularies_of_other_sizes(kanna, base, task, text, tmp_path):
    other = save_model(tmp_path / "padded", vocab_size=128)
    ran = kanna("compare", base, other, "--task", task, "--task", text, "--json", "-q")
    assert ran.code == 0 and ran.json["distribution"] is None
    assert "vocabularies differ in size" in " ".join(ran.json["notes"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--max-drop", "5"), "write 5% (of the base's score) or 5pt (points)"),
        (("--max-drop", "lots"), "'lots'"),
        (("--max-drop", "1%", "--confidence", "0.3"), "confidence 0.3"),
        (("--max-drop", "1%", "--confidence", "1"), "confidence 1"),
        (("--max-drop", "1%", "--guard", "guard.jsonl"), "--guard FILE=3%"),
        (("--max-drop", "1%", "--guard", "missing.jsonl=3%"), "missing.jsonl"),
        (("--max-drop", "1%", "--metric", "bleu"), "bleu"),
        (("--max-drop", "1%", "--out", "/dev/null/results"), "/dev/null"),
        (("--tolerance", "rules.yaml"), "--tolerance goes without --task"),
    ],
)
def test_requests_that_make_no_sense(kanna, base, damaged, task, more, named):
    ran = kanna("compare", base, damaged, "--task", task, *more, "-q")
    assert ran.code == 2 and named in " ".join(ran.err.split())
    assert ran.out == "" and "Traceback" not in ran.err


def test_options_that_would_be_ignored_are_refused(kanna, base, damaged, task, tmp_path):
    guard = ("--guard", f"{task}=3%")
    assert "--max-drop says nothing" in kanna("compare", base, damaged, *guard, "--max-drop", "1%", "-q").err
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"tasks: [{{task: {task}, max_drop: 1%}}]")
    ran = kanna("compare", base, damaged, "--tolerance", rules, "--confidence", "0.9", "-q")
    assert ran.code == 2 and "--confidence" in ran.err
    assert kanna("compare", base, damaged, *guard, "-q").code in (0, 3)


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("", "the file"),
        ("- 1", "the file"),
        ("confidence: high\ntasks: [{task: TASK, max_drop: 1%}]", "confidence"),
        ("tasks: [{task: TASK}]", "tasks.0.max_drop"),
        ("tasks: [{task: TASK, max_drop: 7}]", "7.0 allows everything"),
        ("tasks: [{task: TASK, max_drop: 1%}, {task: TASK, max_drop: 2%}]", "given twice"),
        ("tasks: [{task: TASK, max_drop: 1%}]\nguards: [{task: TASK, max_drop: 2%}]", "given twice"),
        ("tasks: [{task: TASK, max_drop: 1%}]\nguard: []", "guard"),
        (None, "rules.yaml does not exist"),
    ],
)
def test_tolerance_files_refused(kanna, base, damaged, task, tmp_path, yaml, named):
    rules = tmp_path / "rules.yaml"
    if yaml is not None:
        rules.write_text(yaml.replace("TASK", str(task)))
    ran = kanna("compare", base, damaged, "--tolerance", rules, "-q")
    assert ran.code == 2 and named in ran.err and "Traceback" not in ran.err


def test_each_task_has_its_own_drop(kanna, base, damaged, task, tmp_path):
    """Files of one name, told apart by as many folders as it takes."""
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    paths = [write_rows(tmp_path / one / "in" / "t.jsonl", rows[i:]) for i, one in enumerate("abc")]
    rules = tmp_path / "rules.yaml"
    drops = ["90pt", "0.5", "33%"]
    kinds = {"tasks": paths[:2], "guards": paths[2:]}
    lines = dict(zip(paths, drops, strict=True))
    rules.write_text(
        json.dumps(
            {
                "confidence": 0.9,
                **{
                    kind: [{"task": str(p), "max_drop": lines[p]} for p in some]
                    for kind, some in kinds.items()
                },
            }
        )
    )
    found = kanna("compare", base, damaged, "--tolerance", rules, "--json", "-q").json
    assert [one["decision"]["tolerance"] for one in found["tasks"]] == drops
    assert [one["guard"] for one in found["tasks"]] == [False, False, True]
    assert [one["rows"] for one in found["tasks"]] == [80, 79, 78]
    assert found["confidence"] == 0.9 == found["tasks"][0]["decision"]["confidence"]


def test_text_is_judged_by_windows_and_json_is_strict(kanna, base, damaged, text):
    for more in ((), ("--context", "64", "--tokens", "90"), ("--metric", "bits_per_byte")):
        ran = kanna("compare", base, damaged, "--task", text, "--max-drop", "1%", *more, "--json", "-q")
        one = strict(ran.out)["tasks"][0]
        assert one["decision"]["difference"] == pytest.approx(one["new"] - one["base"], rel=1e-4)
        assert one["decision"]["allowed"] == pytest.approx(0.01 * one["base"])
        assert ran.code == (0 if one["decision"]["status"] == "pass" else 3)
    assert kanna("compare", base, damaged, "--task", text, "--max-drop", "1%", "--tokens", 90).code == 3


def test_corpus_bleu_is_judged_by_its_rows_and_says_so(kanna, base, damaged, tmp_path):
    pytest.importorskip("sacrebleu")
    task = own_answers(kanna, base, tmp_path / "own.jsonl", 20)
    asked = ("--task", task, "--metric", "bleu", "--max-drop", "5%", "--no-distribution", "--json", "-q")
    found = kanna("compare", base, damaged, *asked).json
    assert "mean over rows" in " ".join(found["notes"])


def test_a_metric_of_the_users_own(kanna, base, damaged, task, tmp_path):
    metric = tmp_path / "own.py"
    metric.write_text(
        "def halves(rows):\n    return [0.5 + (r['predicted'] == r['expected']) / 2 for r in rows]\n"
    )
    asked = ("--task", task, "--metric", f"{metric}:halves", "--max-drop", "2", "--json", "-q")
    ran = kanna("compare", base, damaged, *asked)
    one = ran.json["tasks"][0]
    assert one["decision"]["method"].startswith("paired bootstrap") and ran.code == 0
    assert (one["lost"], one["gained"], one["flips"]) == (0, 0, [])


def evaluated(kanna: Callable[..., Any], model: Path, *more: object) -> tuple[bool, Any]:
    """Whether all came from the cache, and the scores."""
    found = kanna("eval", model, *more, "--json", "-q").json
    return "cached" in found["run"], found["tasks"]


def test_scores_in_the_cache_are_those_computed(kanna, base, task, text):
    asked = ("--task", task, "--task", text)
    computed, kept = evaluated(kanna, base, *asked), evaluated(kanna, base, *asked)
    assert (computed[0], kept[0]) == (False, True) and computed[1] == kept[1]


@pytest.mark.parametrize("option", [("--context", 32), ("--metric", "acc_norm"), ("--batch-tokens", 64)])
def test_other_options_are_computed(kanna, base, task, option):
    assert not evaluated(kanna, base, "--task", task)[0]
    assert not evaluated(kanna, base, "--task", task, *option)[0]
    assert evaluated(kanna, base, "--task", task, *option)[0]


def test_a_tokenizer_changed_is_computed(kanna, base, task):
    assert not evaluated(kanna, base, "--task", task)[0]
    other_tokenizer(base)
    assert not evaluated(kanna, base, "--task", task)[0]


def test_users_metrics_are_never_kept(kanna, base, task, tmp_path):
    metric = tmp_path / "own.py"
    for value in (0.25, 0.75):
        metric.write_text(f"def fixed(rows):\n    return [{value} for _ in rows]\n")
        cached, scores = evaluated(kanna, base, "--task", task, "--metric", f"{metric}:fixed")
        assert not cached and scores[0]["value"] == value


@pytest.mark.parametrize(
    "junk", ["", "{", "[]", "{}", '{"records": [{}]}', '{"records": 5, "notes": []}', "\x00"]
)
def test_a_damaged_cache_is_computed_again(kanna, base, task, tmp_path, junk, monkeypatch):
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    before = evaluated(kanna, base, "--task", task)[1]
    (kept,) = (tmp_path / "cache" / "evaluations").glob("*.json")
    kept.write_text(junk)
    assert evaluated(kanna, base, "--task", task) == (False, before)
    assert evaluated(kanna, base, "--task", task) == (True, before)


def test_a_killed_comparison_goes_on_where_it_was(kanna, base, damaged, task, text, monkeypatch):
    import kanna.tasks.evaluate as module

    asked: list[tuple[str, str]] = []

    def killed(real: Any) -> Any:
        def score(plan: Any, scored_by: Any, task: Any, progress: Any) -> Any:
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append((plan.name, task.name))
            return real(plan, scored_by, task, progress)

        return score

    for name in ("_text", "score_questions"):
        monkeypatch.setattr(module, name, killed(getattr(module, name)))
    command = ("compare", base, damaged, "--task", task, "--task", text, "--max-drop", "1pt", "--json", "-q")
    assert kanna(*command).code == 130
    assert asked == [("base", "task.jsonl"), ("base", "text.txt"), ("damaged", "task.jsonl")]
    asked.clear()
    kanna(*command)
    assert asked == [("damaged", "text.txt")]


def recorded(out: Path) -> Any:
    step = json.loads((out / "kanna.json").read_text())["steps"][-1]
    assert lineage.verify(out) is not None
    return step["scores"]["comparison"]


LOW = ("--keep", "0.3", "--method", "plain", "--align", 1)


def test_a_failing_model_is_still_written(kanna, base, tmp_path):
    """Of what the base writes by itself, a third of the weights knows little."""
    task = own_answers(kanna, base, tmp_path / "own.jsonl", 60)
    ran = kanna(
        "lowrank", base, *LOW, "--task", task, "--max-drop", "5pt", "--out", tmp_path / "out", "--json", "-q"
    )
    said = recorded(tmp_path / "out")
    assert ran.code == 3 and said["status"] == "fail" == ran.json["comparison"]["status"]
    assert said["base"]["model"] == "base" and said["model"]["model"] == "out"
    assert said["tasks"][0]["base"] > 0.9 and "flips" not in said["tasks"][0]
    assert said["tasks"][0]["decision"]["allowed"] == -0.05
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Verdict: fail" in card and "own.jsonl" in card
    assert str(tmp_path) not in (tmp_path / "out" / "kanna.json").read_text()


def test_equal_runs_record_equal_verdicts(kanna, base, task, tmp_path):
    files = []
    for place in ("one", "two"):
        out = tmp_path / place / "out"
        kanna("lowrank", base, *LOW, "--task", task, "--max-drop", "9%", "--out", out, "-q")
        files.append([(out / name).read_bytes() for name in ("kanna.json", "README.md")])
        task.touch()
        kanna("cache", "clear", "-q")
    assert files[0] == files[1]


def test_nothing_done_passes_outright(kanna, base, task, tmp_path):
    how = ("--keep", 1.0, "--method", "plain", "--task", task, "--max-drop", "0pt")
    ran = kanna("lowrank", base, *how, "--out", tmp_path / "out", "-q")
    assert ran.code == 0 and "bit-identical" in recorded(tmp_path / "out")["explanation"]


def test_a_recipe_ends_with_the_verdict(kanna, base, task, tmp_path):
    guard = own_answers(kanna, base, tmp_path / "own.jsonl", 60)
    rules = tmp_path / "rules.yaml"
    drops = {
        "tasks": [{"task": str(task), "max_drop": "90pt"}],
        "guards": [{"task": str(guard), "max_drop": "2%"}],
    }
    rules.write_text(json.dumps(drops))
    step = {"lowrank": {"keep": 0.3, "align": 1, "method": "plain"}}
    recipe = tmp_path / "recipe.yaml"
    whole = {"model": str(base), "out": str(tmp_path / "out"), "steps": [step], "tolerance": str(rules)}
    recipe.write_text(json.dumps(whole))
    ran = kanna("run", recipe, "--json", "-q")
    said = recorded(tmp_path / "out")
    assert (
        ran.code == 3 and said["status"] == "fail" and said["explanation"].startswith("own.jsonl changed by")
    )
    assert [one["decision"]["status"] for one in said["tasks"]] == ["pass", "fail"]
    assert [one["guard"] for one in said["tasks"]] == [False, True]


@pytest.mark.parametrize(
    "asked",
    [("--task", "missing.jsonl", "--max-drop", "1%"), ("--max-drop", "1%"), ("--tolerance", "missing.yaml")],
)
def test_writing_verbs_refuse_before_they_write(kanna, base, small, tmp_path, asked, unchanged):
    before = unchanged(tmp_path)
    assert kanna("lowrank", base, *LOW, *asked, "--out", tmp_path / "new" / "out", "-q").code == 2
    assert (
        kanna("export", small, "--format", "dense", *asked, "--out", tmp_path / "new" / "out", "-q").code == 2
    )
    assert unchanged(tmp_path) == before


def test_an_export_that_is_not_decided_is_written_all_the_same(kanna, small, task, tmp_path):
    out = tmp_path / "dense"
    ran = kanna("export", small, "--format", "dense", "--task", task, "--max-drop", "0pt", "--out", out, "-q")
    assert ran.code == 3 and recorded(out)["status"] == "undecided"
    assert recorded(out)["base"]["model"] == "small" and recorded(out)["model"]["model"] == "dense"
    assert "verdict: undecided" in ran.out and f"written: {out}" in ran.out
    assert kanna("compare", small, out, "--task", task, "--max-drop", "20pt", "-q").code == 0


def test_the_function_says_what_the_verb_says(kanna, base, damaged, task):
    asked = ("--task", task, "--max-drop", "3pt", "--no-distribution", "--json", "-q")
    found = compare(base, damaged, criteria_of([str(task)], "3pt"), distribution=False)
    assert json.loads(json.dumps(found.to_dict())) == kanna("compare", base, damaged, *asked).json


def lopsided(kanna: Callable[..., Any], base: Path, path: Path, share: float) -> Path:
    """Questions with the choices x and y, of which a model gets at least `share` right; x is right mostly."""
    asked = [{"prompt": words(7 * i, 5), "choices": [" w1", " w2"], "label": 0} for i in range(60)]
    records = kanna("eval", base, "--task", write_rows(path, asked), "--json", "-q").json["tasks"][0][
        "records"
    ]
    chosen = [record["chosen"] for record in records]
    rights = round(share * len(asked))
    for i, row in enumerate(asked):
        row["label"] = chosen[i] if i < rights else 1 - chosen[i]
    return write_rows(path, asked)


# Share of right answers -> what comes of a pass. The constant answer gets 0.52, 0.55 and 0.58 of these rows.
_EMPTY = {0.5: "no better than", 0.6: "not surely better than", 0.8: ""}


@pytest.mark.parametrize("share", _EMPTY)
def test_a_base_that_knows_no_more_than_one_answer_cannot_pass(kanna, base, tmp_path, share):
    """Within a wide tolerance; what is said depends on the constant answer alone."""
    same = changed(base, tmp_path / "same", ["model.layers.0.mlp.up_proj"], 1e-6)
    task = lopsided(kanna, base, tmp_path / "own.jsonl", share)
    asked = ("--task", task, "--max-drop", "40pt", "--no-distribution", "-q")
    ran = kanna("compare", base, same, *asked, "--json")
    one, why = ran.json["tasks"][0], _EMPTY[share]
    assert one["decision"]["status"] == "pass" and one["base"] == pytest.approx(share)
    lowest, _ = proportion_confint(round(60 * share), 60, alpha=0.1, method="wilson")
    assert (lowest <= one["floors"]["constant"]) is bool(why)
    assert (ran.json["status"], ran.code) == (("empty", 3) if why else ("pass", 0))
    if not why:
        return
    answer = max(("w1", "w2"), key=lambda word: sum(word == said for said in _expected(task)))
    assert f"the base does {why} always answering {answer!r}" in ran.json["explanation"]
    said = kanna("compare", base, same, *asked)
    assert "verdict: empty" in said.out and "more examples" not in said.out
    accepted = kanna("compare", base, same, *asked, "--accept-empty", "--json")
    assert (accepted.code, accepted.json["status"]) == (0, "pass")
    assert any("empty, and accepted" in note for note in accepted.json["notes"])
    warned = kanna("eval", base, "--task", task, "--json", "-q").json["tasks"][0]["notes"]
    assert any(f"warning: the model does {why}" in note for note in warned)


def _expected(task: Path) -> list[str]:
    rows = map(json.loads, task.read_text().splitlines())
    return [row["choices"][row["label"]].strip() for row in rows]


def test_too_few_rows_of_a_base_that_knows_nothing_are_not_asked_for_more(kanna, base, tmp_path):
    worse = changed(base, tmp_path / "worse", ["model.layers.0.mlp.up_proj"], 1.0)
    task = lopsided(kanna, base, tmp_path / "own.jsonl", 0.5)
    asked = ("--task", task, "--max-drop", "5pt", "--no-distribution", "--json", "-q")
    found = kanna("compare", base, worse, *asked).json
    assert found["tasks"][0]["decision"]["status"] == "undecided"
    assert found["status"] == "empty" and "more examples" not in found["explanation"]


def test_a_task_of_which_every_prompt_was_cut_is_empty(kanna, base, tmp_path):
    """Of all but one cut, something was asked."""
    same = changed(base, tmp_path / "same", ["model.layers.0.mlp.up_proj"], 1e-6)
    task = lopsided(kanna, base, tmp_path / "own.jsonl", 0.5)
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    for row in rows:
        row["prompt"] = words(3, 40)
    for last, status in ((words(3, 40), "empty"), (words(3, 4), "pass")):
        rows[-1]["prompt"] = last
        asked = ("--task", write_rows(task, rows), "--context", 12, "--max-drop", "50pt", "--json", "-q")
        found = kanna("compare", base, same, *asked, "--no-distribution").json
        cut = "every prompt was cut" in found["explanation"]
        assert cut is (status == "empty"), found["explanation"]
