"""Hi-Merging of real models: what is written, from where blocks go on, kills, and what is refused."""

import json
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import changes_below, die_at_change, hashes, in_child
from merge_models import largest, save_model, weights
from test_merge_adapters import save_adapter
from tuned_tasks import rows_of, split_words, tasks_of, write_rows

import kanna
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.hi.asked import asked_for, ground_of, mixing_of, opened
from kanna.methods.merge.hi.config import HiOptions
from kanna.methods.merge.hi.contributions import conflicts
from kanna.methods.merge.hi.state import Treatment, everywhere
from kanna.methods.merge.tuning.evaluating import Evaluator
from kanna.methods.merge.tuning.samples import Notebook, Sample, Scale
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_rows
from kanna.tasks.options import EvalOptions

Models = dict[str, Path]
Given = dict[str, Any]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models of one dtype, of which those that are nowhere in a state need not be read."""
    place = tmp_path_factory.mktemp("alike")
    base = save_model(place / "base", 0, torch.bfloat16)
    a, b = (save_model(place / name, seed, torch.bfloat16, base) for seed, name in ((1, "a"), (2, "b")))
    return split_words({"base": base, "a": a, "b": b}, tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def mixed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Each of a dtype of its own."""
    return split_words(models, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def tasks(spoken: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tasks_of(spoken, tmp_path_factory.mktemp("tasks"))


def hi(models: Models, tasks: dict[str, Path], out: Path, options: HiOptions, **more: Any) -> Any:
    experts = {name: models[name] for name in tasks}
    return kanna.merge_hi(models["base"], experts, tasks, out, options, out_dtype="float32", **more)


def options(stages: Any = "both", **given: Any) -> HiOptions:
    tried = {} if stages == "layer" else {"p": "0.5,1", "s": "0.5,1"}
    return HiOptions(**{"stages": stages, **tried, "share": 0.4, "rounds": 2, **given})


def block_of(name: str) -> str:
    if ".layers." in name:
        return name.split(".")[2]
    return "embeddings" if "embed" in name else "norm and head"


def together(plan: Any, scope: str) -> list[list[str]]:
    """Tensors whose entries are ranked together, in the order of the plan."""
    found: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        key = block_of(tensor.spec.name) if scope == "layer" else tensor.spec.name
        found.setdefault(key, []).append(tensor.spec.name)
    return list(found.values())


def flat(tensors: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([tensors[name].float().flatten() for name in names])


def quiet(*_: object) -> None:
    """Says nothing."""


@pytest.mark.parametrize(
    ("dtypes", "scope"), [("spoken", "tensor"), ("mixed", "tensor"), ("spoken", "layer")]
)
def test_what_is_written_is_what_is_told(
    dtypes: str, scope: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every tensor by plain loops from the shares and scales of `merge.json`; the recipe makes it again."""
    spoken: Models = request.getfixturevalue(dtypes)
    tasks = {
        name: write_rows(tmp_path / f"task-{name}.jsonl", rows_of(spoken[name], spoken["base"], seed, 60))
        for seed, name in enumerate("ab")
    }
    done = hi(spoken, tasks, tmp_path / "out", options(tau=-0.05, scope=scope))
    told = json.loads((tmp_path / "out" / "merge.json").read_text())["hi"]
    assert told == done.outcome.to_dict() and done.passed
    parts = {part["block"]: part for part in told["parts"]}
    assert list(parts) == ["embeddings", "0", "1", "norm and head"]
    assert len({json.dumps([part["kept"], part["scales"]]) for part in parts.values()}) > 1
    base, *experts = (weights(spoken[name]) for name in ("base", "a", "b"))
    written = weights(tmp_path / "out")
    for names in together(done.written.plan, scope):
        part = parts[block_of(names[0])]
        expected = flat(base, names).double()
        for expert, kept, scale in zip(experts, part["kept"], part["scales"], strict=True):
            difference = (flat(expert, names) - flat(base, names)).tolist()
            expected = expected + scale * torch.tensor(largest(difference, kept), dtype=torch.float64)
        torch.testing.assert_close(flat(written, names).double(), expected, rtol=0, atol=1e-6)
    text = (tmp_path / "out" / "recipe.yaml").read_text()
    again = yaml.safe_load(text)
    again["base_model"] = str(spoken["base"])
    for entry in again["models"]:
        entry["model"] = str(spoken[entry["model"]])
    kanna.merge(again, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert hashes(tmp_path / "again")[name] == hashes(tmp_path / "out")[name]
    assert kanna.merge_verify(tmp_path / "out").passed


def test_the_result_is_no_worse_than_what_it_began_with(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    told = hi(spoken, tasks, tmp_path / "out", options(stages="layer", tau=-0.05)).outcome
    steps = [step for one in told.rounds for step in one.steps]
    assert told.after >= told.before and any(step.accepted for step in steps)
    assert all(step.accepted == (step.after >= step.before) for step in steps)
    assert told.normalised and told.after == pytest.approx(sum(told.normalised) / 2)
    # The experts' own stage was left out, and the merge began with all of them.
    assert all((one.kept, one.scale, one.grid) == (1.0, 1.0, ()) for one in told.experts)
    assert told.test is not None and {task.rows for task in told.test.tasks} == {36}


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"stages": "model", "p": "1", "s": "1"}, {}),
        ({"stages": "layer", "tau": 100.0}, {}),
        ({"stages": "layer", "tau": 100.0, "consensus": "ties"}, {"merge_method": "ties"}),
        ({"stages": "layer", "tau": 100.0, "combine": "mean"}, {"parameters": {"lambda": 0.5}}),
    ],
)
def test_without_conflicts_it_is_task_arithmetic(
    given: Given, change: Given, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    told = hi(spoken, tasks, tmp_path / "hi", options(**given)).outcome
    assert not any(step for one in told.rounds for step in one.steps)
    listed = [{"model": str(spoken[name]), "parameters": {"weight": 1.0}} for name in "ab"]
    plain: Given = {"merge_method": "task_arithmetic", "base_model": str(spoken["base"]), "models": listed}
    plain |= {"out_dtype": "float32", **change}
    if plain["merge_method"] == "ties":
        plain["parameters"] = {"normalize": False}
    kanna.merge(plain, tmp_path / "plain")
    ours, theirs = weights(tmp_path / "hi"), weights(tmp_path / "plain")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("group", "scope"), [(1, "tensor"), (2, "tensor"), (2, "layer")])
def test_blocks_that_go_on_from_kept_states_score_as_whole_models(
    group: int, scope: str, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """alpha and beta of every block by both ways; by log loss, of which every digit counts."""
    found = []
    tokens = []
    for naive in (True, False):
        asked = asked_for(
            str(spoken["base"]), {name: str(spoken[name]) for name in tasks}, tasks, {},
            options(group=group, scope=scope), EvalOptions(metric="log_loss"), None, 2 * 10**9, None,
        )  # fmt: skip
        with opened(asked) as subjects:
            evaluator = Evaluator(asked.tasks, asked.evaluation, Notebook(None))
            scales = {name: Scale(0.0, 1.0) for name in tasks}
            ground = ground_of(
                asked, mixing_of(asked, scales), scales, subjects["merge"], evaluator, tmp_path
            )
            ground.naive = naive
            treatments = [Treatment(0.5, 0.8), Treatment(1.0, 0.6)]
            state = everywhere(treatments, len(ground.blocks)).without(1)
            found.append(conflicts(ground, treatments, state, quiet))
            tokens.append(ground.layer_tokens)
    assert len(found[0]) == {1: 4, 2: 3}[group] and tokens[0] == 0 < tokens[1]
    sizes = []
    for one, other in zip(*found, strict=True):
        for mine, theirs in zip((*one.own, *one.merged), (*other.own, *other.merged), strict=True):
            assert mine.deletion == pytest.approx(theirs.deletion, abs=1e-5)
            assert mine.addition == pytest.approx(theirs.addition, abs=1e-5)
            sizes.append(abs(mine.alpha) + abs(mine.beta))
    assert max(sizes) > 0.1  # else equal would be no news


def test_later_blocks_take_less(spoken: Models, tasks: dict[str, Path], tmp_path: Path) -> None:
    """Of two layers a change of the last one takes half of what a change of the first one takes."""
    from kanna.models.inventory import inventory
    from kanna.tasks.scorers.edited import EditedTask
    from kanna.tasks.scorers.resumed import Edit

    asked = asked_for(
        str(spoken["base"]), {"a": str(spoken["a"])}, {"a": tasks["a"]}, {},
        options(), EvalOptions(), None, 2 * 10**9, None,
    )  # fmt: skip
    with opened(asked) as subjects:
        subject = subjects["base"]
        model = subject.model(asked.evaluation)
        prepared = subject.prepared([asked.tasks[0].calibration], asked.evaluation)
        edited = EditedTask(prepared, prepared.tasks[0], model, inventory(model), 2**28)
        edited.base()
        taken = []
        for layer in range(2):
            before = edited.resumed.effort.layer_tokens
            name = f"model.layers.{layer}.self_attn.q_proj"
            edited.edited([[Edit(name, "weight", model.get_parameter(f"{name}.weight"), layer)]])
            taken.append(edited.resumed.effort.layer_tokens - before)
        edited.close()
    assert taken[1] < 0.6 * taken[0]


def test_an_adapter_is_an_expert(spoken: Models, tmp_path: Path) -> None:
    """Merged by plain torch, and judged beside itself."""
    adapter = save_adapter(tmp_path / "adapter", spoken["base"], 4, lora_alpha=60)
    reference = f"{spoken['base']}+{adapter}"
    listed = [{"model": reference, "parameters": {"weight": 1}}]
    kanna.merge({"merge_method": "linear", "models": listed, "out_dtype": "float32"}, tmp_path / "tuned")
    rows = write_rows(tmp_path / "rows.jsonl", rows_of(tmp_path / "tuned", spoken["base"], 3, 60))
    done = kanna.merge_hi(
        spoken["base"], {"a": reference}, {"a": rows}, tmp_path / "out", options(stages="model", p="1"),
        out_dtype="float32",
    )  # fmt: skip
    assert done.outcome is not None and done.outcome.experts[0].scale == 1.0
    ours, theirs = weights(tmp_path / "out"), weights(tmp_path / "tuned")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def whole(spoken: Models, tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert in_child(lambda: hi(spoken, tasks, out, _KILLED, max_drop="90pt")) == 0
    return out


_KILLED = options(p="1", s="1", tau=-0.05, rounds=1, group=2)


def test_a_note_that_was_cut_short_is_made_again(
    whole: Path, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """Killed while an evaluation was noted."""
    told = json.loads((whole / "merge.json").read_text())["hi"]
    last = random.Random(0).randrange(1, told["evaluations"])

    def killed() -> None:
        original, count = Notebook.add, 0

        def add(self: Notebook, candidate: str, task: str, found: Sample) -> None:
            nonlocal count
            original(self, candidate, task, found)
            count += 1
            if count == last:
                assert self.path is not None
                self.path.write_bytes(self.path.read_bytes()[:-9])
                os.kill(os.getpid(), signal.SIGKILL)

        Notebook.add = add  # type: ignore[method-assign]
        hi(spoken, tasks, tmp_path / "out", _KILLED, max_drop="90pt")

    assert in_child(killed) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    resumed = lambda: hi(spoken, tasks, tmp_path / "out", _KILLED, max_drop="90pt", resume=True)  # noqa: E731
    assert in_child(resumed) == 0
    assert hashes(tmp_path / "out") == hashes(whole)
    assert not (tmp_path / "out.kanna-work").exists()


def test_twenty_kills_leave_nothing_half_visible(
    whole: Path, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """At changes of files chosen by chance, over all of a run, the last one among them; each gone on with."""
    expected, counted = hashes(whole), tmp_path / "counted"

    def run(out: Path, resume: bool = False) -> Any:
        return hi(spoken, tasks, out, _KILLED, max_drop="90pt", resume=resume)

    count = changes_below(counted, lambda: run(counted / "out"), tmp_path / "count")
    points = [*random.Random(7).sample(range(1, count), 19), count]
    early = 0
    for point in points:
        room = tmp_path / f"room-{point}"

        def killed(room: Path = room, point: int = point) -> None:
            die_at_change(room, point)
            run(room / "out")

        assert in_child(killed) == -signal.SIGKILL
        there = (room / "out").exists()
        early += not there
        assert not there or hashes(room / "out") == expected
        unfinished = (room / "out.kanna-work" / "run.json").exists()
        if unfinished or not there:
            assert in_child(lambda room=room, resume=unfinished: run(room / "out", resume)) == 0
        assert hashes(room / "out") == expected
        remains = {"out.kanna-work"} if there else set()  # killed while it was removed
        assert {path.name for path in room.iterdir()} <= {"out", "out.run.json", *remains}
    assert 15 <= early < 20


def test_an_expert_that_gains_nothing_is_left_out_where_that_is_wanted(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    own = write_rows(tmp_path / "base.jsonl", rows_of(spoken["base"], spoken["b"], 5, 60))
    files = {"a": tasks["a"], "b": own}
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=r"b gains nothing on its own task base\.jsonl: it scores 0\.\d+"):
        hi(spoken, files, tmp_path / "out", options())
    assert hashes(tmp_path) == before
    told = hi(spoken, files, tmp_path / "out", options(stages="model", drop_useless=True)).outcome
    assert told.dropped == ("b",) and [one.name for one in told.experts] == ["a"]
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert [entry["model"] for entry in recipe["models"]] == ["a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"experts": {"a": "a", "b": "b"}, "tasks": {"a": "a"}}, "the expert b has no task"),
        ({"experts": {"a": "a"}, "tasks": {"a": "a", "b": "b"}}, "the task of b has no expert"),
        ({"experts": {}, "tasks": {}}, "no expert"),
        ({"options": options(p="0,1")}, "--p tries 0"),
        ({"options": options(p="1.5")}, "--p tries 1.5"),
        ({"options": options(s="x")}, "--s 'x' gives no numbers"),
        ({"options": options(scope="model")}, "cannot be pruned apart"),
        ({"options": options(stages="layer", s="0.5")}, "--s has no effect with --stages layer"),
        ({"options": options(stages="layer", p="0.3,0.6,1")}, "--p has no effect with --stages layer"),
        ({"options": options(max_evaluations=20)}, "20 evaluations are too few: one round may take"),
        ({"options": options(share=0.2)}, "12 of 60 rows for calibration"),
        ({"evaluation": EvalOptions(metric="acc")}, "no metric for rows"),
    ],
)
def test_bad_requests(
    given: Given, said: str, spoken: Models, tasks: dict[str, Path], tmp_path: Path
) -> None:
    experts = {name: spoken[model] for name, model in given.get("experts", {"a": "a", "b": "b"}).items()}
    files = {name: tasks[file] for name, file in given.get("tasks", {"a": "a", "b": "b"}).items()}
    more = {key: given[key] for key in ("evaluation",) if key in given}
    with pytest.raises(InputError, match=said):
        kanna.merge_hi(
            spoken["base"], experts, files, tmp_path / "out", given.get("options", options()), **more
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--calibration-share", "0.2"], r"leaves 12 of 60 rows .* decide nothing(.|\n)*at least 100 rows"),
        (["--max-evaluations", "30"], r"30 evaluations are too few: one round may take \d+"),
        (["--test", "a=groups.jsonl"], r"share 1 groups, such as 'g1'"),
        (["--test", "a=same.jsonl"], r"1 rows of same.jsonl ask what rows of task-a.jsonl ask"),
        (["--expert", "c=taller", "--task", "c=task-a.jsonl"], r"taller"),
    ],
)
def test_the_verb_refuses_before_it_writes(
    flags: list[str],
    said: str,
    spoken: Models,
    tasks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    first = json.loads(tasks["a"].read_text().splitlines()[0])
    write_rows(tmp_path / "groups.jsonl", [{"prompt": "t9", "answer": " t8", "group": "g1"}])
    write_rows(tmp_path / "same.jsonl", [{**first, "group": "other"}])
    shutil.copy(tasks["a"], tmp_path / "task-a.jsonl")
    split_words({"taller": save_model(tmp_path / "raw", 3, torch.bfloat16, layers=3)}, tmp_path)
    words = ["merge", "hi", str(spoken["base"]), "--calibration-share", "0.4", "--out", "new/out"]
    for name, rows in tasks.items():
        words += ["--expert", f"{name}={spoken[name]}", "--task", f"{name}={rows}"]
    before = hashes(tmp_path)
    assert main([*words, *flags]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert hashes(tmp_path) == before and not (tmp_path / "new").exists()


def test_the_verb(
    spoken: Models, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", "hi", str(spoken["base"]), "--stages", "both", "--p", "1", "--s", "0.5,1"]
    words += ["--calibration-share", "0.4"]
    for name, rows in tasks.items():
        words += ["--expert", f"{name}={spoken[name]}", "--task", f"{name}={rows}"]
    words += ["--out", str(tmp_path / "out"), "--tau", "-0.05", "--rounds", "1"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    count = 2 * 2 + 2 * 5 + 4 * 2 * 4 + 2 * 4
    assert shown.err.startswith(f"at most {count} evaluations") and not list(tmp_path.iterdir())
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "merge-hi" and told["hi"]["evaluations"] <= count
    assert math.isfinite(told["hi"]["test"]["normalised"])
    assert main([*words, "--force"]) == 0
    said = capsys.readouterr().out
    for title in ("Experts by themselves", "Conflicts by block", "Steps, by the mean", "On the test rows"):
        assert title in said
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for title in ("Scores of a by p and s", "Contributions in the experts, by deletion", "Conflicts"):
        assert title in page


def test_models_that_classify(spoken: Models, tmp_path: Path) -> None:
    """Their blocks are scored in whole models; an expert that moved its head alone has only that."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(spoken["base"], num_labels=2, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).to(torch.float32).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(spoken["base"]).save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "a")
    values = load_file(tmp_path / "a" / "model.safetensors")
    values["score.weight"] = -values["score.weight"]
    save_file(values, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    rows = rows_of(spoken["a"], spoken["base"], 9, 60)
    for row in rows:
        del row["answer"]
        row |= {"choices": ["LABEL_0", "LABEL_1"], "label": 0}
    file = write_rows(tmp_path / "rows.jsonl", rows)
    (score,) = kanna.evaluate(tmp_path / "a", [file], fresh=True).scores
    for row, record in zip(rows, score.records, strict=True):
        row["label"] = record.chosen
    write_rows(file, rows)
    done = kanna.merge_hi(
        tmp_path / "base", {"a": tmp_path / "a"}, {"a": file}, tmp_path / "out", options(stages="layer")
    )
    assert done.outcome is not None
    head = {block.block: block.own[0].alpha for block in done.outcome.rounds[0].blocks}
    assert head.pop("norm and head") == 1.0 and set(head.values()) == {0.0}


def test_encoder_decoders(tmp_path: Path) -> None:
    """Blocks of both stacks, scored in whole models: alpha of one against a model on disk without it."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    for number, name in enumerate(("base", "a")):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            T5ForConditionalGeneration(config).save_pretrained(tmp_path / name)
        tokenizer = Tokenizer(WordLevel({f"t{one}": one for one in range(40)}, unk_token="t2"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t1", "pad_token": "t0"}'
        )
    draw = random.Random(0)
    rows: list[dict[str, Any]] = [
        {
            "prompt": " ".join(f"t{draw.randrange(3, 40)}" for _ in range(4)),
            "choices": [f" t{one}" for one in draw.sample(range(3, 40), 4)],
            "label": 0,
        }
        for _ in range(60)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    (score,) = kanna.evaluate(tmp_path / "a", [file], fresh=True).scores
    for row, record in zip(rows, score.records, strict=True):
        row["label"] = record.chosen
    write_rows(file, rows)
    asked = options(stages="layer", rounds=1)
    done = kanna.merge_hi(tmp_path / "base", {"a": tmp_path / "a"}, {"a": file}, tmp_path / "out", asked)
    assert done.outcome is not None
    found = {block.block: block.own[0] for block in done.outcome.rounds[0].blocks}
    between = ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]
    assert list(found) == ["embeddings", *between, "norm and head"]
    places, _ = split_rows(read_rows(file), 0.4, 0)
    chosen = write_rows(tmp_path / "chosen.jsonl", [rows[place] for place in places])
    shutil.copytree(tmp_path / "a", tmp_path / "without")
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "a"))
    mixed = {name: base[name] if name.startswith("decoder.block.1.") else tuned[name] for name in base}
    save_file(mixed, tmp_path / "without" / "model.safetensors", {"format": "pt"})
    values = [
        kanna.evaluate(tmp_path / name, [chosen], fresh=True).scores[0].value for name in ("a", "without")
    ]
    assert found["decoder 1"].alpha == pytest.approx(values[0] - values[1]) and values[0] != values[1]
    page = tmp_path / "page.html"
    assert (
        main(["report", str(tmp_path / "out"), "--out", str(page)]) == 0 and "decoder 1" in page.read_text()
    )
