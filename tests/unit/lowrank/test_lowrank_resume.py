"""Equal input gives equal bytes, whatever happens in between; and nothing but the output is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from killing import in_child, killed_and_resumed

from kanna.errors import InputError
from kanna.runs.cache_limit import LIMIT, trim_cache
from kanna.runs.places import work_directory

WAYS: dict[str, dict[str, Any]] = {
    "anchored": {"keep": 0.6},
    "whitened": {"keep": 0.7, "method": "whitened", "storage": "pivot"},
    "refined": {"keep": 0.6, "refine": 4},
}
# (n, late): killed right before or after the n-th file has its final name. They come in this order: run.json,
# gradients, streams and surveys in turn (8), two streams (10), two streams, probe and block thrice (22), out.
POINTS: dict[str, list[tuple[int, bool]]] = {
    "anchored": [(2, False), (4, False), (9, True), (14, True), (21, True), (23, True)],
    "whitened": [(5, True), (8, False), (23, False)],
    "refined": [(6, True), (18, True)],
}
KILLED = -9

Base = Callable[[str], Path]


class Interrupted(Exception):
    """Raised by a progress callback, as Ctrl-C would be."""


def interrupt(stage: str, done: int) -> Callable[[str, int, int], None]:
    def progress(found: str, count: int, total: int) -> None:
        if (found, count) == (stage, done):
            raise Interrupted

    return progress


@pytest.fixture
def interrupted(bases: Base, text: Path, cache: Path, tmp_path: Path) -> Path:
    """An output path whose run was interrupted halfway."""
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tiny.compress(bases("llama"), out, text, cache, keep=0.6, progress=interrupt("replace", 1))
    assert work_directory(out).is_dir() and not out.exists()
    return out


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_give_the_same_bytes(way: str, bases: Base, text: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.compress(bases("llama"), tmp_path / name / "out", text, tmp_path / f"cache-{name}", **WAYS[way])
    first, second = tiny.hashes(tmp_path / "a/out"), tiny.hashes(tmp_path / "b/out")
    assert first == second and "kanna.json" in first


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_point_and_resumed_gives_the_same_bytes(
    way: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    """Each run in a forked child, with a cache of its own: every point is the same file in all of them."""
    base, reference = bases("llama"), tmp_path / "reference" / "out"
    assert in_child(lambda: tiny.compress(base, reference, text, cache, **WAYS[way])) == 0
    for point, late in POINTS[way]:
        room = tmp_path / f"{point}-{late}"

        def run(resume: bool, room: Path = room) -> None:
            tiny.compress(base, room / "out", text, room / "cache", resume=resume, **WAYS[way])

        assert killed_and_resumed(run, point, late) == (KILLED, 0), (point, late)
        assert tiny.hashes(room / "out") == tiny.hashes(reference), (point, late)


def test_an_unfinished_run_is_neither_taken_over_nor_thrown_away_unasked(
    interrupted: Path, bases: Base, text: Path, cache: Path
) -> None:
    before = tiny.hashes(work_directory(interrupted))
    with pytest.raises(InputError, match=r"unfinished run(.|\n)*--resume(.|\n)*--force"):
        tiny.compress(bases("llama"), interrupted, text, cache, keep=0.6)
    assert tiny.hashes(work_directory(interrupted)) == before


@pytest.mark.parametrize(
    "changed", [{"keep": 0.5}, {"seed": 1}, {"storage": "pivot"}, {"tokens": 300}, {"select": "mlp"}]
)
def test_other_settings_are_not_resumed(
    changed: dict[str, Any], interrupted: Path, bases: Base, text: Path, cache: Path
) -> None:
    before = tiny.hashes(work_directory(interrupted))
    (name,) = changed
    with pytest.raises(InputError, match=rf"other settings: {name} was \S+ and is \S+\n(.|\n)*--force"):
        tiny.compress(bases("llama"), interrupted, text, cache, resume=True, **({"keep": 0.6} | changed))
    assert tiny.hashes(work_directory(interrupted)) == before


def test_another_model_or_text_is_not_resumed(
    interrupted: Path, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    other = tiny.text(tmp_path / "other.jsonl", seed=99)
    changed = ((bases("mistral"), text, "the model"), (bases("llama"), other, "the text or task"))
    for model, words, said in changed:
        with pytest.raises(InputError, match=f"other settings: {said}.* is another one"):
            tiny.compress(model, interrupted, words, cache, keep=0.6, resume=True)


def test_force_starts_over(interrupted: Path, bases: Base, text: Path, cache: Path) -> None:
    result = tiny.compress(bases("llama"), interrupted, text, cache, keep=0.5, force=True)
    assert result.passed and not work_directory(interrupted).exists()
    assert result.figures["keep_selected"] <= 0.5


def test_there_is_nothing_to_resume(bases: Base, text: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unfinished run"):
        tiny.compress(bases("llama"), tmp_path / "out", text, cache, keep=0.6, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_a_run_without_its_record_are_not_used(
    bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    """Killed while its work was being removed: the record may be gone and blocks still there."""
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tiny.compress(bases("llama"), out, text, cache, keep=0.3, progress=interrupt("replace", 3))
    (work_directory(out) / "run.json").unlink()
    tiny.compress(bases("llama"), out, text, cache, keep=0.6)
    tiny.compress(bases("llama"), tmp_path / "reference/out", text, cache, keep=0.6)
    assert tiny.hashes(out) == tiny.hashes(tmp_path / "reference/out")


def test_two_runs_for_one_output_do_not_meet(bases: Base, text: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("replace", 1):
            for options in ({"resume": True}, {"force": True}):
                with pytest.raises(InputError, match="another run"):
                    tiny.compress(bases("llama"), out, text, cache, keep=0.6, **options)

    assert tiny.compress(bases("llama"), out, text, cache, keep=0.6, progress=second).passed


def test_the_source_is_not_touched(text: Path, cache: Path, tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "base")
    before, words = tiny.hashes(base), text.read_bytes()
    tiny.compress(base, tmp_path / "out", text, cache, keep=0.6, refine=2)
    assert tiny.hashes(base) == before and text.read_bytes() == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "out.run.json"]


def test_a_dry_run_writes_nothing(bases: Base, text: Path, tmp_path: Path) -> None:
    result = tiny.compress(bases("llama"), tmp_path / "out", text, tmp_path / "cache", keep=0.6, dry_run=True)
    assert result.out is None and result.plan.selected
    assert list(tmp_path.iterdir()) == []


def test_statistics_serve_every_other_ratio(bases: Base, text: Path, tmp_path: Path) -> None:
    stages: list[list[str]] = []
    for keep in (0.7, 0.5, 0.6):
        seen: list[str] = []
        tiny.compress(
            bases("llama"), tmp_path / str(keep), text, tmp_path / "cache", keep=keep, method="whitened",
            progress=lambda stage, *_, seen=seen: seen.append(stage),
        )  # fmt: skip
        stages.append(seen)
    assert {"forward", "loss", "survey"} <= set(stages[0])
    assert all(set(later) == {"replace", "verify"} for later in stages[1:])
    fresh = tmp_path / "fresh/0.6"
    tiny.compress(bases("llama"), fresh, text, tmp_path / "other", keep=0.6, method="whitened")
    assert tiny.hashes(fresh)["model.safetensors"] == tiny.hashes(tmp_path / "0.6")["model.safetensors"]
    left = {path.suffix for path in (tmp_path / "cache").rglob("hidden-*")}
    assert not left, "hidden states are not kept between runs"


def test_statistics_of_other_text_or_method_are_not_reused(bases: Base, text: Path, tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tiny.text(tmp_path / "other.jsonl", seed=99)
    uses: list[tuple[Path, dict[str, Any]]] = [
        (text, {}), (other, {}), (text, {"method": "asvd"}), (text, {"ridge": 0.1}), (text, {"select": "mlp"})
    ]  # fmt: skip
    for number, (words, changes) in enumerate(uses):
        settings = {"keep": 0.6, "method": "whitened"} | changes
        tiny.compress(bases("llama"), tmp_path / str(number), words, cache, **settings)
    assert len(list((cache / "statistics").rglob("survey-000*"))) == len(uses)


def test_statistics_begun_by_another_method_are_not_taken_for_finished(
    bases: Base, text: Path, tmp_path: Path
) -> None:
    """Anchored and whitened share a place, and each looks for files of its own in it."""
    cache, settings = tmp_path / "cache", {"keep": 0.6, "outputs": "equal"}
    for begun, finished in (("anchored", "whitened"), ("whitened", "anchored")):
        root = tmp_path / begun
        with pytest.raises(Interrupted):
            tiny.compress(
                bases("llama"), root / "begun", text, cache / begun, method=begun,
                progress=interrupt("survey", 2), **settings,
            )  # fmt: skip
        tiny.compress(bases("llama"), root / "a/out", text, cache / begun, method=finished, **settings)
        tiny.compress(bases("llama"), root / "b/out", text, cache / "new", method=finished, **settings)
        assert tiny.hashes(root / "a/out") == tiny.hashes(root / "b/out")


def test_what_a_run_still_reads_is_not_removed_from_the_cache(
    bases: Base, text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "0")
    trimmed: list[int] = []

    def other(stage: str, done: int, total: int) -> None:
        """Another run ends while this one replaces blocks."""
        if stage == "replace":
            trimmed.append(trim_cache(cache).bytes)

    for method in ("whitened", "anchored"):
        result = tiny.compress(
            bases("llama"), tmp_path / method, text, cache, keep=0.6, method=method, progress=other
        )
        assert result.passed and trimmed and all(trimmed)
        assert not list((cache / "statistics").iterdir()), "it goes at the end"
        trimmed.clear()
