"""Several edits together: only what helps is kept, in stages that can be undone and done again."""

import json
import shutil
from pathlib import Path
from typing import Any

import laser_tiny
import pytest
import torch

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.laser.arena import SearchOptions, open_arena
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.composing import STAGES, laser_compose, restore_stage, stage_edits
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.restore import restore
from kanna.methods.laser.run import laser_apply
from kanna.methods.laser.searching import RESULT, laser_search
from kanna.result import replace
from kanna.runs.places import work_directory
from kanna.tasks.options import EvalOptions
from kanna.tasks.scorers.edited import EditedTask

RHOS = ("0.9", "0.75", "0.5", "0.25")


def digests(directory: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(directory)
    return {name: bytes(checkpoint.raw(name)) for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def searched(planted: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "search"
    options = SearchOptions(rhos=RHOS, roles="all", share=0.4, budget=Budget(fast=None))
    laser_search(planted, task, out, options)
    return out


@pytest.fixture(scope="module")
def composed(
    planted: Path, task: Path, searched: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("composed")
    shutil.copytree(planted, root / planted.name)
    out = root / "out"
    found = laser_compose(root / planted.name, task, searched, out, max_steps=8)
    return found.result, out


def test_accepted_scores_never_fall(composed):
    found, _ = composed
    best = (-found["base"]["accuracy"], found["base"]["log_loss"])
    consistency = found["base"]["consistency"]
    for stage in found["stages"]:
        score = (-stage["accuracy"], stage["log_loss"])
        assert stage["accepted"] == (score < best and stage["consistency"] >= consistency)
        if stage["accepted"]:
            best, consistency = score, stage["consistency"]
    accepted = [one for one in found["stages"] if one["accepted"]]
    assert 1 <= len(accepted) < len(found["stages"]) <= 8  # some were rejected
    assert [one["number"] for one in accepted] == list(range(1, len(accepted) + 1))
    layers = [int(one["edit"].split(":")[1]) for one in found["stages"]]
    assert layers == sorted(layers, reverse=True)
    assert found["test"]["edit"]["value"] > found["test"]["base"]["value"] + 0.2


def test_what_was_rejected_left_no_trace(composed, planted, tmp_path):
    found, out = composed
    edits = tuple(one["edit"] for one in found["stages"] if one["accepted"])
    laser_apply(planted, tmp_path / "by hand", LaserConfig(edits=edits))
    assert digests(tmp_path / "by hand") == digests(out)
    named = {one["tensor"] for one in json.loads((out / "kanna-laser.json").read_text())["edits"]}
    old, new = digests(planted), digests(out)
    assert {name for name in old if old[name] != new[name]} == named and len(named) == len(edits)


def test_a_step_that_is_tried_leaves_the_loaded_weights_alone(planted, task):
    arena = open_arena(planted, task, SearchOptions(share=0.4, rhos=RHOS, roles="all"), EvalOptions())
    before = {name: tensor.clone() for name, tensor in arena.model.state_dict().items()}
    tried = EditedTask(arena.plan, arena.validation_task, arena.model, arena.found, 2**30)
    first = tried.base()
    candidates = arena.candidates()[::5]
    for one in candidates[:4]:
        tried.edited([arena.weights.edits([one])])
    tried.edited([arena.weights.edits([candidates[0], candidates[1]])])
    after = arena.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert tried.base() == first
    tried.close()


def test_stages_are_undone_and_done_again(composed, planted, tmp_path, kanna):
    found, out = composed
    accepted = [one["edit"] for one in found["stages"] if one["accepted"]]
    assert stage_edits(out, 0) == () and stage_edits(out, len(accepted)) == tuple(accepted)
    shutil.copytree(planted, tmp_path / planted.name)
    shutil.copytree(out, tmp_path / "composed")
    words = ("laser", "restore", tmp_path / "composed", "--stage")
    assert kanna(*words, 0, "--out", tmp_path / "zero")[0] == 0
    assert digests(tmp_path / "zero") == digests(planted)
    assert kanna(*words, 1, "--out", tmp_path / "one")[0] == 0
    laser_apply(planted, tmp_path / "by hand", LaserConfig(edits=tuple(accepted[:1])))
    assert digests(tmp_path / "one") == digests(tmp_path / "by hand")
    code, said, _ = kanna(
        "laser", "restore", tmp_path / "one", "--stage", len(accepted), "--out", tmp_path / "all", "--json"
    )
    assert code == 0 and json.loads(said)["stage"] == len(accepted)
    assert digests(tmp_path / "all") == digests(out)
    assert json.loads((tmp_path / "all" / STAGES).read_text()) == json.loads((out / STAGES).read_text())
    code, _, said = kanna(*words, len(accepted) + 1, "--out", tmp_path / "more")
    assert code == 2 and f"stages are 0 (the base) to {len(accepted)}" in said
    code, _, said = kanna("laser", "restore", planted, "--stage", 0, "--out", tmp_path / "more")
    assert code == 2 and STAGES in said
    restore(tmp_path / "all", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(planted)


def test_stages_from_kept_originals_alone(planted, task, searched, tmp_path):
    out = tmp_path / "out"
    found = laser_compose(planted, task, searched, out, config=LaserConfig(keep_originals=True), max_steps=8)
    accepted = found.result["accepted"]
    restore_stage(out, 1, tmp_path / "one")
    shutil.rmtree(out)
    restore_stage(tmp_path / "one", accepted, tmp_path / "all")
    restore_stage(tmp_path / "all", 0, tmp_path / "zero")
    assert digests(tmp_path / "zero") == digests(planted)
    edits = tuple(one["edit"] for one in found.result["stages"] if one["accepted"])
    laser_apply(planted, tmp_path / "by hand", LaserConfig(edits=edits))
    assert digests(tmp_path / "all") == digests(tmp_path / "by hand")


def test_perplexity_of_plain_text_limits_every_step(composed, planted, task, searched, text, tmp_path):
    free = laser_compose(
        planted, task, searched, tmp_path / "free", text=text, max_ppl_rise=None, max_steps=8
    )
    assert free.result["stages"] == composed[0]["stages"]
    none = laser_compose(
        planted, task, searched, tmp_path / "none", text=text, max_ppl_rise=-0.99, max_steps=8
    )
    assert none.result["accepted"] == 0 and none.result["test"] is None
    assert digests(tmp_path / "none") == digests(planted)
    some = laser_compose(planted, task, searched, tmp_path / "some", text=text, max_ppl_rise=0.0, max_steps=8)
    pair = some.result["perplexity"]
    assert pair["edited"] <= pair["base"]


def test_candidates_that_a_fast_search_did_not_finish_take_part(planted, task, tmp_path):
    options = SearchOptions(
        rhos=RHOS, roles="all", share=0.4, budget=Budget(fast=20, shortlist=12, finalists=2)
    )
    laser_search(planted, task, tmp_path / "search", options)
    found = laser_compose(planted, task, tmp_path / "search", tmp_path / "out", max_steps=8)
    assert len({one["edit"] for one in found.result["stages"]}) > 2


def test_the_search_must_be_of_this_model_and_task(planted, clean, task, rows, searched, tmp_path, kanna):
    other = laser_tiny.write_rows(tmp_path / "other.jsonl", rows[2:])
    cases: list[tuple[tuple[object, ...], str]] = [
        ((clean, "--task", task, "--from", searched), "is not the model that"),
        ((planted, "--task", other, "--from", searched), "is not the task that"),
        ((planted, "--task", task, "--from", searched, "--limit", 200), "--limit"),
        ((planted, "--task", task, "--from", searched, "--metric", "exact"), "chose by greedy"),
        ((planted, "--task", task, "--from", planted), RESULT),
        ((planted, "--task", task, "--from", tmp_path / "nowhere"), RESULT),
        ((planted, "--task", task, "--from", searched, "--blocks", 2), "tried no edits of 2 row blocks"),
        ((planted, "--task", task, "--from", searched, "--max-ppl-rise", "2%"), "--text"),
    ]
    for words, said in cases:
        code, out, err = kanna("laser", "compose", *words, "--out", tmp_path / "new" / "out")
        assert code == 2 and said in err and out == "" and "Traceback" not in err, words
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl"]
    newer = json.loads((searched / RESULT).read_text()) | {"schema_version": 99}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="upgrade kanna"):
        laser_compose(planted, task, tmp_path / "newer.json", tmp_path / "out")


class Interrupted(Exception):
    """Raised by a progress callback."""


def interrupt(stage: str, done: int, total: int) -> None:
    if stage == "compose" and done > 1:
        raise Interrupted


def test_unfinished_work_of_other_settings_is_not_resumed(planted, task, searched, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        laser_compose(planted, task, searched, out, progress=interrupt)
    assert work_directory(out).is_dir() and not out.exists()
    with pytest.raises(InputError, match=r"unfinished run(.|\n)*--resume"):
        laser_compose(planted, task, searched, out)
    with pytest.raises(InputError, match="other settings"):
        laser_compose(planted, task, searched, out, max_steps=3, resume=True)
    laser_compose(planted, task, searched, out, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


def test_what_is_printed(planted, task, searched, tmp_path, kanna):
    words = ("laser", "compose", planted, "--task", task, "--from", searched, "--max-steps", 4)
    code, out, _ = kanna(*words, "--out", tmp_path / "out", "--factored")
    assert code == 0 and "accepted" in out and "as it is" in out and "written:" in out
    assert (tmp_path / "out" / STAGES).is_file()


def test_rows_of_their_own_for_the_final_figure(planted, rows, tmp_path, kanna):
    choosing = laser_tiny.write_rows(tmp_path / "choosing.jsonl", rows[:96])
    test = laser_tiny.write_rows(tmp_path / "test.jsonl", rows[96:])
    options = SearchOptions(rhos=("0.5", "0.25"), budget=Budget(fast=None), test=test)
    found = laser_search(planted, choosing, tmp_path / "search", options)
    assert found.result["task"]["validation_rows"] == 96 and found.result["test"]["rows"] == 144
    words = ("laser", "compose", planted, "--task", choosing, "--from", tmp_path / "search", "--out")
    code, _, said = kanna(*words, tmp_path / "out")
    assert code == 2 and "--test" in said
    assert kanna(*words, tmp_path / "out", "--test", test)[0] == 0
    assert replace(options, test=None).to_dict()["test"] is None
