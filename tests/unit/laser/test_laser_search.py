"""The search finds what was planted, by whatever way, and never looks at what it must not see."""

import json
import random
from pathlib import Path
from typing import Any

import laser_tiny
import pytest
import torch
import transformers
from counting import counted
from safetensors.torch import load_file
from torch import Tensor, nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.laser.arena import SearchOptions, fingerprint, open_arena
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.searching import RESULT, SearchResult, laser_search
from kanna.runs.evaluations import evaluate_text
from kanna.runs.places import work_directory
from kanna.tasks.journal import Journal
from kanna.tasks.options import EvalOptions

RHOS = ("0.9", "0.75", "0.5", "0.25", "0.12", "0.06")
WHERE, BEST = "down:2", "0.25"
EXHAUSTIVE = Budget(fast=None)


def search(model: Path, task: Path, out: Path | None = None, /, **given: Any) -> SearchResult:
    own = {key: given.pop(key) for key in ("config", "force", "resume", "evaluation") if key in given}
    settings = {"rhos": RHOS, "roles": "all", "share": 0.4, "budget": EXHAUSTIVE} | given
    return laser_search(model, task, out, SearchOptions(**settings), **own)


@pytest.fixture(scope="module")
def searched(
    planted: Path, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchResult, Path]:
    out = tmp_path_factory.mktemp("searched") / "out"
    return search(planted, task, out), out


def test_what_was_planted_is_found(searched):
    found, _ = searched
    chosen = found.result["chosen"]
    assert not found.result["base_wins"]
    assert chosen["edit"].startswith(f"{WHERE}:")
    assert abs(RHOS.index(chosen["rho"]) - RHOS.index(BEST)) <= 1
    assert chosen["rank"] == 8 and chosen["accuracy"] >= found.result["base"]["accuracy"] + 0.2
    tested = found.result["test"]
    assert tested["edit"]["value"] > tested["base"]["value"] + 0.2
    assert tested["edit"]["value"] > max(tested[name]["value"] for name in ("magnitude", "random"))
    assert tested["interval"][0] > 0 and tested["gained"] > tested["lost"]


@pytest.mark.parametrize("fast", [16, 30, 100])
def test_the_fast_search_finds_it_too(planted, task, searched, fast):
    found = search(planted, task, budget=Budget(fast=fast))
    assert found.result["chosen"]["accuracy"] == searched[0].result["chosen"]["accuracy"]
    assert found.result["chosen"]["edit"].startswith(f"{WHERE}:")
    assert found.run["work"]["layer_tokens"] < searched[0].run["work"]["layer_tokens"] / 5
    predicted = found.result["predicted"]
    assert len(predicted) == found.result["candidates"] == 126
    assert min(predicted, key=predicted.__getitem__).split(":")[1] == "2"


def test_as_many_evaluations_and_decompositions_as_must_be(searched, planted, task):
    found, _ = searched
    assert found.result["evaluations"] == 7 * 3 * len(RHOS) + 1
    assert found.run["work"]["decompositions"] == 7 * 3
    assert found.result["left_out"] == 0 and len(found.result["trials"]) == 126
    mlp = search(planted, task, roles="mlp_in,mlp_out", layers="1-")
    assert mlp.result["evaluations"] == 2 * 2 * len(RHOS) + 1
    assert mlp.run["work"]["decompositions"] == 2 * 2


def answers(model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Accuracy and mean log loss of single-token answers, by one plain pass."""
    with torch.no_grad():
        chances = model(ids[:, :-1]).logits[:, -1].log_softmax(-1)
    right = chances.argmax(-1) == ids[:, -1]
    return float(right.double().mean()), -float(chances.gather(1, ids[:, -1:]).double().mean())


def test_brute_force_over_whole_passes_selects_the_same_edit(planted, task):
    found = search(planted, task, first=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(planted).eval()
    ids = laser_tiny.token_ids()[: int(0.4 * 240)]
    base = answers(model, ids)
    assert (found.result["base"]["accuracy"], found.result["base"]["log_loss"]) == pytest.approx(
        base, abs=1e-5
    )
    scores: dict[str, tuple[float, float]] = {}
    names = {
        name: name
        for name, parameter in model.named_parameters()
        if "layers" in name and parameter.dim() == 2
    }
    roles = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj"}
    for name in names:
        role = next((r for r, part in roles.items() if part in name), "down")
        weight = model.get_parameter(name)
        old = weight.detach().clone()
        left, values, right = torch.linalg.svd(old.double(), full_matrices=False)
        for rho in RHOS:
            rank = int(float(rho) * min(old.shape) + 1e-9)
            with torch.no_grad():
                weight.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
            scores[f"{role}:{name.split('.')[2]}:{rho}"] = answers(model, ids)
        with torch.no_grad():
            weight.copy_(old)
    tried = {one["edit"]: (one["accuracy"], one["log_loss"]) for one in found.result["trials"]}
    assert tried.keys() == scores.keys()
    for edit, score in scores.items():
        assert tried[edit] == pytest.approx(score, abs=1e-5)
    assert found.result["chosen"]["edit"] == min(scores, key=lambda one: (-scores[one][0], scores[one][1]))


def test_what_is_written_is_what_was_tried(searched, planted, task):
    found, out = searched
    recorded = json.loads((out / RESULT).read_text())
    assert recorded == json.loads(json.dumps(found.result))
    known = json.loads((out / "kanna.json").read_text())
    assert known["steps"][0]["method"] == "laser search"
    assert known["steps"][0]["data_hash"] == found.result["task"]["sha256"]
    again = search(out, task, rhos=("0.9",), roles="q", layers="0")
    assert again.result["base"]["accuracy"] == pytest.approx(found.result["chosen"]["accuracy"])
    assert again.result["base"]["log_loss"] == pytest.approx(found.result["chosen"]["log_loss"], abs=1e-6)
    assert again.result["test"]["base"]["value"] == pytest.approx(found.result["test"]["edit"]["value"])
    old = load_file(planted / "model.safetensors")
    new = load_file(out / "model.safetensors")
    assert [name for name in old if not torch.equal(old[name], new[name])] == [laser_tiny.PLANTED]


def test_the_model_is_opened_and_hashed_once(planted, task, tmp_path):
    with counted() as counts:
        search(planted, task, tmp_path / "out", budget=Budget(fast=16))
    model = counts.of(planted)
    assert (model.opens, model.hashes, model.loads) == (1, 1, 1)


@pytest.mark.parametrize("fast", [None, 30])
@pytest.mark.parametrize("apart", [False, True])
def test_test_answers_choose_nothing(planted, rows, tmp_path, fast, apart):
    count = int(0.4 * len(rows))
    choosing, rest = rows[:count], rows[count:]
    found = []
    for seed in (None, 1):
        said = [row["answer"] for row in rest]
        if seed is not None:
            random.Random(seed).shuffle(said)
        shuffled = [row | {"answer": one} for row, one in zip(rest, said, strict=True)]
        given: dict[str, Any] = {"budget": Budget(fast=fast), "first": True, "roles": "mlp"}
        if apart:
            given["test"] = laser_tiny.write_rows(tmp_path / "test.jsonl", shuffled)
            file = laser_tiny.write_rows(tmp_path / "choosing.jsonl", choosing)
        else:
            file = laser_tiny.write_rows(tmp_path / "all.jsonl", [*choosing, *shuffled])
        found.append(search(planted, file, **given).result)
    for one in found[1:]:
        for key in ("chosen", "trials", "base", "predicted", "pareto"):
            assert one[key] == found[0][key]
    assert len({one["test"]["edit"]["value"] for one in found}) > 1


def test_the_base_wins_where_nothing_beats_it(clean, task, tmp_path):
    found = search(clean, task, tmp_path / "out", roles="mlp")
    assert found.result["base_wins"] and found.result["chosen"]["edit"] == ""
    assert found.result["base"]["accuracy"] == 1.0
    assert any(one["accuracy"] == 1.0 for one in found.result["trials"])  # ties go to the base
    old, new = Checkpoint.open(clean), Checkpoint.open(tmp_path / "out")
    assert all(old.raw(name) == new.raw(name) for name in old.tensors)
    assert old.tensors.keys() == new.tensors.keys()
    assert found.applied.status == "not judged" and found.passed
    published = search(clean, task, rule="published", roles="mlp")
    assert not published.result["base_wins"] and published.result["chosen"]["edit"]


def test_perplexity_of_plain_text_limits_the_choice(planted, task, text, searched, tmp_path):
    given = {"text": text, "roles": "mlp", "layers": "2", "rhos": ("0.5", "0.25")}
    found = search(planted, task, tmp_path / "out", max_ppl_rise=None, **given)
    assert found.result["chosen"]["edit"] == searched[0].result["chosen"]["edit"]
    before = found.result["base"]["perplexity"]
    after = found.result["chosen"]["perplexity"]
    for model, value in ((planted, before), (tmp_path / "out", after)):
        assert evaluate_text(model, text).result.perplexity == pytest.approx(value, rel=1e-5)
    rise = after / before - 1
    allowed = search(planted, task, max_ppl_rise=rise + 1e-6, **given)
    assert allowed.result["chosen"]["edit"] == found.result["chosen"]["edit"]
    refused = search(planted, task, max_ppl_rise=rise - 1e-6, **given)
    assert refused.result["chosen"]["edit"] != found.result["chosen"]["edit"]
    measured = {one["edit"]: one["perplexity"] for one in refused.result["trials"] if one["perplexity"]}
    assert measured[found.result["chosen"]["edit"]] == pytest.approx(after)
    nothing = search(planted, task, max_ppl_rise=-0.99, **given)
    assert nothing.result["base_wins"]
    assert search(planted, task, max_ppl_rise=-0.99, rule="published", **given).result["chosen"]["edit"]


def test_row_blocks(planted, task, tmp_path):
    found = search(
        planted, task, tmp_path / "out", blocks=(2,), roles="down", layers="2", rhos=("0.5", "0.25")
    )
    chosen = found.result["chosen"]
    assert chosen["blocks"] == 2 and chosen["rank"] in (4, 8)
    old, new = (
        load_file(one / "model.safetensors")[laser_tiny.PLANTED] for one in (planted, tmp_path / "out")
    )
    for rows in (slice(0, 16), slice(16, 32)):
        left, values, right = torch.linalg.svd(old[rows].double(), full_matrices=False)
        rank = chosen["rank"]
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        torch.testing.assert_close(new[rows].double(), expected, rtol=0, atol=1e-6)
    one = search(planted, task, blocks=(1,), roles="down", layers="2", rhos=("0.5",))
    both = search(planted, task, blocks=(1, 2), roles="down", layers="2", rhos=("0.5",))
    assert both.result["trials"][0] == one.result["trials"][0] and len(both.result["trials"]) == 2
    fast = search(planted, task, blocks=(1, 2), budget=Budget(fast=30))
    assert len(fast.result["predicted"]) == 2 * 126


def test_factors_of_the_chosen_edit(planted, task, tmp_path):
    given = {"roles": "down", "layers": "2", "rhos": ("0.25",)}
    found = search(planted, task, tmp_path / "out", config=LaserConfig(factored=True), **given)
    assert found.applied is not None and found.applied.figures["modules_factored"] == 1
    with pytest.raises(InputError, match="one block of rows"):
        search(planted, task, tmp_path / "o2", config=LaserConfig(factored=True), blocks=(1, 2), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


def test_a_budget_says_what_it_left_out(planted, task):
    few = search(planted, task, budget=Budget(fast=None, max_evaluations=10))
    assert len(few.result["trials"]) == 10 and few.result["left_out"] == 116
    assert {one["layer"] for one in few.result["trials"]} == {2}
    assert {one["role"] for one in few.result["trials"]} <= {"gate", "up", "down"}
    late = search(planted, task, budget=Budget(fast=None, max_seconds=0))
    assert len(late.result["trials"]) == 3 * len(RHOS) and late.result["left_out"] == 126 - 18
    fast = search(planted, task, budget=Budget(fast=30, shortlist=5))
    assert len(fast.result["trials"]) == 5 and fast.result["left_out"] == 121
    assert len(search(planted, task, budget=Budget(fast=30, max_evaluations=3)).result["trials"]) == 3


def test_states_on_disk_change_nothing(planted, task, searched, tmp_path):
    found = search(planted, task, tmp_path / "out", memory=0)
    assert found.result == searched[0].result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


class Interrupted(Exception):
    """Raised by a progress callback."""


def interrupt(stage: str, done: int, total: int) -> None:
    if stage == "search" and done:
        raise Interrupted


def test_unfinished_work_is_neither_taken_over_nor_thrown_away_unasked(planted, clean, task, tmp_path, kanna):
    out = tmp_path / "out"
    options = SearchOptions(rhos=("0.5", "0.25"), share=0.4, budget=EXHAUSTIVE, memory=0)
    with pytest.raises(Interrupted):
        laser_search(planted, task, out, options, progress=interrupt)
    # as a process that was killed leaves it
    (work_directory(out) / "kanna-states-left").mkdir()
    (work_directory(out) / "kanna-states-left" / "0-0.safetensors").write_bytes(b"1")
    words = ("laser", "search", planted, "--task", task, "--rho", "0.5,0.25", "--validation-share", 0.4)
    words = (*words, "--exhaustive", "--out", out)
    code, _, said = kanna(*words)
    assert code == 2 and "--resume" in said and "--force" in said and "Traceback" not in said
    code, _, said = kanna(*words, "--resume", "--seed", 1)
    assert code == 2 and "other settings" in said
    with pytest.raises(InputError, match="other settings"):
        laser_search(clean, task, out, options, resume=True)
    assert (work_directory(out) / "tallies.jsonl").is_file()
    assert kanna(*words, "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]
    code, _, said = kanna(*words)
    assert code == 2 and "exists already" in said
    code, _, said = kanna(*words, "--resume")
    assert code == 2 and "exists already" in said


def test_nothing_to_resume(planted, task, tmp_path):
    with pytest.raises(InputError, match="no unfinished run"):
        search(planted, task, tmp_path / "out", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(planted, task, tmp_path, kanna, monkeypatch):
    from kanna.methods.laser.validation import Validation

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Validation, "score", stop)
    words = ("laser", "search", planted, "--task", task, "--exhaustive", "--out", tmp_path / "out")
    code, out, said = kanna(*words)
    assert code == 130 and out == ""
    assert said.strip().endswith(f"--exhaustive --out {tmp_path / 'out'} --resume")


def test_the_fingerprint_tells_runs_apart(planted, task, rows, tmp_path):
    def key(**given: Any) -> str:
        own = {"evaluation": EvalOptions(), "task": task} | given
        evaluation, file = own.pop("evaluation"), own.pop("task")
        return fingerprint(open_arena(planted, file, SearchOptions(**({"share": 0.4} | own)), evaluation))

    other = laser_tiny.write_rows(tmp_path / task.name, rows[1:])
    changed: list[dict[str, Any]] = [
        {"seed": 1}, {"rhos": ("0.5",)}, {"share": 0.5}, {"roles": "down"}, {"rule": "published"},
        {"budget": Budget(fast=50)}, {"first": True}, {"task": other},
        {"evaluation": EvalOptions(metric="exact")},
    ]  # fmt: skip
    keys = [key(), *(key(**one) for one in changed)]
    assert len(set(keys)) == len(keys)
    assert key(memory=0) == keys[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--roles", "banana"), "no matrix has the role 'banana'"),
        (("--layers", "7"), "no layer 7"),
        (("--rho", "0.5,2"), "rho 2 is no number from 0 to 1"),
        (("--rho", "half"), "rho half"),
        (("--rho", ""), "rho"),
        (("--blocks", "0"), "--blocks"),
        (("--blocks", "99", "--layers", "0"), "cannot be cut into 99 blocks"),
        (("--validation-share", "0.05"), "too few to tell edits apart"),
        (("--validation-share", "0.05", "--first"), "give a task of at least 400 rows"),
        (("--validation-share", "0"), "0"),
        (("--validation-share", "1.5", "--first"), "not between 0 and 1"),
        (("--limit", "30"), "too few"),
        (("--by", "colour"), "keys of its rows: frequency"),
        (("--metric", "bleu"), "bleu"),
        (("--metric", "banana"), "banana"),
        (("--rule", "best"), "there is no rule 'best'"),
        (("--max-ppl-rise", "2%"), "--text"),
        (("--max-ppl-rise", "lots", "--text", "TEXT"), "--max-ppl-rise"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--test", "missing.jsonl"), "missing.jsonl"),
        (("--test", "TASK"), "given twice"),
        (("--test", "TEXT"), "kind"),
        (("--tolerance", "missing.yaml"), "missing.yaml"),
        (("--tolerance", "TOLERANCE"), "missing.jsonl"),
        (("--factored", "--blocks", "1,2"), "one block of rows"),
        (("--max-minutes", "1"), "--exhaustive"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(planted, task, text, tmp_path, kanna, words, said):
    tolerance = tmp_path / "tolerance.yaml"
    tolerance.write_text("tasks: [{task: missing.jsonl, max_drop: 1%}]")
    files = {"TEXT": text, "TASK": task, "TOLERANCE": tolerance}
    words = tuple(files.get(word, word) for word in words)
    share = () if "--validation-share" in words else ("--validation-share", 0.4)
    out = tmp_path / "new" / "out"
    code, printed, err = kanna("laser", "search", planted, "--task", task, *share, *words, "--out", out)
    assert code == 2 and printed == "" and "Traceback" not in err
    assert said in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tolerance.yaml"]


def test_models_and_tasks_that_cannot_be_searched(planted, task, text, tmp_path, kanna):
    import tiny_encoders

    classifier = tiny_encoders.save_encoder(tmp_path / "classifier", "Bert", "ForSequenceClassification")
    quantised = laser_tiny.save(transformers.AutoModelForCausalLM.from_pretrained(planted), tmp_path / "q")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "awq"}})
    )
    choices = [{"prompt": f"w{i}", "choices": ["LABEL_0", "LABEL_1"], "label": i % 2} for i in range(80)]
    asked = laser_tiny.write_rows(tmp_path / "choices.jsonl", choices)
    for model, rows, said in (
        (classifier, asked, "classification head"),
        (quantised, task, "already quantized"),
        (planted, text, "plain text"),
        (planted, "lm_eval:arc_easy", "cannot be searched on"),
        (tmp_path / "nowhere", task, "nowhere"),
    ):
        code, _, err = kanna("laser", "search", model, "--task", rows, "--out", tmp_path / "out")
        assert code == 2 and said in err and "Traceback" not in err
        assert not (tmp_path / "out").exists() and not work_directory(tmp_path / "out").exists()


def test_weights_that_are_no_numbers_leave_no_work_behind(planted, task, tmp_path, kanna):
    model = transformers.AutoModelForCausalLM.from_pretrained(planted)
    with torch.no_grad():
        model.get_parameter(laser_tiny.PLANTED)[0, 0] = float("nan")
    bad = laser_tiny.save(model, tmp_path / "bad")
    for more in ((), ("--exhaustive",)):
        words = ("--task", task, "--validation-share", 0.4, "--out", tmp_path / "new" / "out", *more)
        code, _, said = kanna("laser", "search", bad, *words)
        assert code == 2 and "finite" in said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_what_is_printed(planted, task, tmp_path, kanna):
    words = ("laser", "search", planted, "--task", task, "--validation-share", 0.4, "--by", "frequency")
    code, out, _ = kanna(*words, "--layers", "2", "--exhaustive")
    assert code == 0 and "as it is" in out and "Chosen: down:2:0.2" in out
    assert "magnitude pruning" in out and "frequent" in out and "always the commonest answer" in out
    code, out, _ = kanna(*words, "--layers", "2", "--fast", 30, "--json")
    found = json.loads(out)
    assert code == 0 and found["kind"] == "laser-search" and found["applied"] is None
    assert found["test"]["by"]["base"].keys() == {"frequent", "rare"}


def test_full_rank_changes_no_figure(planted, task, text):
    options = SearchOptions(share=0.4, rhos=("1",), roles="mlp", text=text)
    arena = open_arena(planted, task, options, EvalOptions())
    base = arena.perplexity([])
    assert all(arena.perplexity([one]) == base for one in arena.candidates())
    assert arena.weights.decompositions == 0


def test_log_loss_and_consistency_by_hand(planted, rows, tmp_path):
    """Log loss of a row is that of its whole answer; of a group all wordings must be right."""
    said = [str(row["answer"]) for row in rows]
    longer = [f"{one} {said[i - 2]}" if i % 3 == 0 else one for i, one in enumerate(said)]
    rows = [row | {"answer": one} for row, one in zip(rows, longer, strict=True)]
    file = laser_tiny.write_rows(tmp_path / "rows.jsonl", rows)
    found = search(planted, file, first=True, roles="down", layers="2", rhos=("0.25",)).result["base"]
    model = transformers.AutoModelForCausalLM.from_pretrained(planted).eval()
    number = {word: laser_tiny.FIRST_WORD + i for i, word in enumerate(laser_tiny.WORDS)}
    losses, right = [], {}
    for row in rows[:96]:
        prompt, answer = ([number[word] for word in str(row[key]).split()] for key in ("prompt", "answer"))
        with torch.no_grad():
            chances = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)[1:-1]
        losses.append(-sum(float(chances[i, token]) for i, token in enumerate(answer)))
        right.setdefault(row["group"], []).append(chances.argmax(-1).tolist() == answer)
    assert found["log_loss"] == pytest.approx(sum(losses) / 96, abs=1e-5)
    assert found["accuracy"] == sum(map(sum, right.values())) / 96
    assert found["consistency"] == sum(map(all, right.values())) / len(right)


def test_edits_made_one_at_a_time_score_as_those_made_together(planted, task):
    options = SearchOptions(rhos=RHOS, roles="all", share=0.4, budget=EXHAUSTIVE)
    found = []
    for limit in (2**30, 1):
        arena = open_arena(planted, task, options, EvalOptions())
        arena.weights._limit = limit
        some = [one for one in arena.candidates() if one.matrix.layer == 2 and one.matrix.group == "mlp"]
        chunks = list(arena.weights.chunks(some))
        assert [one for chunk in chunks for one in chunk] == some
        assert len(chunks) == (1 if limit > 1 else len(some))
        found.append(arena.validation(Journal(None), None).score(some, 1))
    assert found[0] == found[1]
