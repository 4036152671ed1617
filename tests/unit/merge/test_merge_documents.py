import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
import yaml
from killing import changes_below, die_at_change, hashes, in_child
from merge_models import recipe, save_model, weights

import kanna
from kanna.checkpoint.card import front_matter
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.journal import Journal, Note
from kanna.reporting.wording import size

Models = dict[str, Path]


def written(models: Models, path: Path, weight: float = 0.25, dtype: str = "float32") -> Path:
    """Base and a with weights of their own, then with b; the document that is needed comes last."""
    first = recipe("linear", {models["base"]: {"weight": 1 - weight}, models["a"]: {"weight": weight}})
    first = {"name": "first one", "dtype": dtype, **first}
    last = recipe("linear", {Path("first one"): {"weight": 0.5}, models["b"]: {"weight": 0.5}})
    path.write_text(yaml.safe_dump_all([last, first], sort_keys=False))
    return path


def test_a_document_takes_the_result_of_another(models: Models, tmp_path: Path) -> None:
    file, out, kept = written(models, tmp_path / "recipe.yml"), tmp_path / "out", tmp_path / "kept"
    plan = kanna.merge_plan(file)
    assert [one.recipe.name for one in plan.before] == ["first one"] and not kept.exists()
    kanna.merge(file, out, keep_intermediates=kept)
    base, a, b = (weights(models[name]) for name in ("base", "a", "b"))
    for name, values in weights(out).items():
        between = 0.75 * base[name].double() + 0.25 * a[name].double()
        torch.testing.assert_close(values.double(), (between + b[name].double()) / 2, rtol=1e-6, atol=1e-7)
    assert front_matter(out)["base_model"] == ["base", "a", "b"]
    documents = list(yaml.safe_load_all((out / "recipe.yaml").read_text()))
    assert documents[1]["models"][0]["model"] == "first one" and documents[0]["models"][1]["model"] == "a"
    assert kanna.merge_verify(out).inputs == ("first one", "b")
    (between,) = kept.iterdir()
    before = between.stat().st_mtime_ns
    kanna.merge(file, tmp_path / "again", keep_intermediates=kept)
    assert between.stat().st_mtime_ns == before and hashes(tmp_path / "again").keys() == hashes(out).keys()
    kanna.merge(file, tmp_path / "unkept")
    assert not list(tmp_path.glob("*.kanna-work"))
    same = [weights(tmp_path / name) for name in ("again", "unkept")]
    assert all(torch.equal(one[name], values) for one in same for name, values in weights(out).items())
    kanna.merge(written(models, file, weight=0.5), tmp_path / "edited", keep_intermediates=kept)
    assert len(list(kept.iterdir())) == 2
    name = "model.norm.weight"
    expected = (base[name].double() + a[name].double()) / 4 + b[name].double() / 2
    torch.testing.assert_close(weights(tmp_path / "edited")[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_a_plan_shows_every_document(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(models, tmp_path / "recipe.yml")
    assert main(["merge", "plan", str(file)]) == 0
    shown = capsys.readouterr().out
    first, last = shown.split("document 1 of 2: first one")[1].split("document 2 of 2: the output")
    assert "0.75 0.25" in first and "0.5 0.5" not in first
    assert "0.5 0.5" in last and "0.75 0.25" not in last
    assert main(["merge", "plan", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (before,) = told["before"]
    assert before["name"] == "first one" and "name" not in told
    assert before["groups"][0]["parameters"]["weight"] == [0.75, 0.25]
    read = before["bytes_read"] + told["bytes_read"]
    plan = kanna.merge_plan(file)
    assert read == plan.bytes_read + plan.before[0].bytes_read
    assert f"all documents: reads {size(read)}" in shown


def test_what_does_not_fit_is_seen_before_anything_is_made(models: Models, tmp_path: Path) -> None:
    file = written(models, tmp_path / "recipe.yml")
    file.write_text(file.read_text().replace("weight: 0.5", "weight: [{filter: mlp, value: 1}]", 1))
    with pytest.raises(InputError, match="no value for the tensor"):
        kanna.merge(file, tmp_path / "out", keep_intermediates=tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]


@pytest.mark.parametrize("point", [3, 25])
def test_a_killed_merge_of_documents_goes_on_to_the_same_bytes(
    point: int, models: Models, tmp_path: Path
) -> None:
    file, out, whole = written(models, tmp_path / "recipe.yml"), tmp_path / "out", tmp_path / "whole" / "out"
    kanna.merge(file, whole)

    def killed() -> None:
        original, count = Journal.add, 0

        def add(self: Journal, note: Note) -> None:
            nonlocal count
            original(self, note)
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add  # type: ignore[method-assign]
        kanna.merge(file, out)

    assert in_child(killed) == -signal.SIGKILL
    assert not out.exists()
    between = list((tmp_path / "out.kanna-work" / "documents").glob("first-one-*[!l]"))
    assert len(between) == (point == 25)  # the model has 20 tensors
    kanna.merge(file, out, resume=True)
    assert hashes(out) == hashes(whole)
    assert not list(tmp_path.glob("*.kanna-work"))


def test_twenty_kills_leave_nothing_half_visible(models: Models, tmp_path: Path) -> None:
    """At changes of files chosen by chance, over all of a merge of two documents, and each gone on with."""
    small = {
        name: save_model(tmp_path / name, seed, torch.float32, layers=1) for seed, name in enumerate(models)
    }
    file, whole = written(small, tmp_path / "recipe.yml"), tmp_path / "whole" / "out"
    count = changes_below(whole.parent, lambda: kanna.merge(file, whole, load=False), tmp_path / "count")
    expected = hashes(whole)
    points = random.Random(7).sample(range(1, count + 1), 19)
    early = 0
    for point in (*points, count):
        room = tmp_path / f"room-{point}"
        out = room / "out"

        def killed(room: Path = room, out: Path = out, point: int = point) -> None:
            die_at_change(room, point)
            kanna.merge(file, out, load=False)

        assert in_child(killed) == -signal.SIGKILL
        there = out.exists()
        early += not there
        assert not there or hashes(out) == expected
        unfinished = (room / "out.kanna-work" / "run.json").exists()
        if unfinished or not out.exists():
            kanna.merge(file, out, load=False, resume=unfinished)
        assert hashes(out) == expected
        remains = {"out.kanna-work"} if there else set()  # killed while it was removed
        assert {path.name for path in room.iterdir()} <= {"out", "out.run.json", *remains}
    assert 15 <= early < 20
