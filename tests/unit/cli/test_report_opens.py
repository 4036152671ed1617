"""`kanna report` opens every folder that a verb writes. A new verb with --out DIR is noticed here."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kanna.cli.main import main, program
from kanna.terminal.lazy import LazyCommand

UNIT = Path(__file__).parents[1]
DEMO = UNIT.parents[1] / "src" / "kanna" / "demo"

# Verb -> words that make its folder `D`; or the file of tests that opens it, where it takes experts.
MADE = {
    "eval": "eval MODEL --task app.jsonl --limit 20 --out D",
    "compare": "compare MODEL LOW --task app.jsonl --max-drop 5pt --limit 20 --out D",
    "bench": "bench MODEL --batch 1 --context 8 --new-tokens 2 --repeats 1 --warmup 0 --no-memory --out D",
    "lowrank": "lowrank MODEL --method plain --keep 0.8 --select down --out D",
    "quantize": "quantize MODEL --bits 4 --group 32 --out D",
    "tune": "tune INT --data lessons.jsonl --name law --steps 1 --allow-overlap --out D",
    "basel": "basel MODEL --data lessons.jsonl --keep 0.5 --select down@-1 --epochs 0,1,0 --out D",
    "export": "export LOW --format dense --out D",
    "export gptq": "export INT --format gptq --out D",
    "import": "import PACKED --out D",
    "run": "run chain.yaml --out D",
    "laser apply": "laser apply MODEL --edit mlp_out:-1:k=64 --out D",
    "laser search": "laser search MODEL --task app.jsonl --roles down --layers -1 --rho 0.5 --fast 8 --out D",
    "laser compose": "laser compose MODEL --task app.jsonl --from FOUND --out D --max-steps 1",
    "laser analyze": "laser analyze MODEL --task app.jsonl --edit down:3:0.5 --limit 10 --samples 1 --out D",
    "merge run": "merge run merge.yml --out D",
    "merge extract-lora": "merge extract-lora EDITED MODEL --rank 2 --out D",
    "merge sweep": "merge/test_merge_sweep.py",
    "merge hi": "merge/test_merge_hi.py",
    "merge analyze": "merge/test_merge_analyze.py",
    "demo": "test_demo.py",
}
# Verbs whose --out is a file, rows, or a model as it was before kanna.
NO_RESULTS = {"report", "laser restore", "scales diff", "scales export", "task split"}
READY = (
    "lowrank MODEL --method plain --keep 0.8 --select down --out LOW",
    "quantize MODEL --bits 4 --group 32 --out INT",
    "export INT --format compressed-tensors --out PACKED",
    "laser apply MODEL --edit mlp_out:-1:k=64 --out EDITED",
    "laser search MODEL --task app.jsonl --roles mlp_out --layers -1 --rho 0.5 --fast 8 --out FOUND",
)
CHAIN = "{model: MODEL, steps: [{lowrank: {keep: 0.8, method: plain}}, {quantize: {bits: 4, group: '32'}}]}"
MERGE = "{merge_method: linear, models: [{model: MODEL}, {model: EDITED}], parameters: {weight: 0.5}}"


def verbs(command: Any = None, name: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All that can be run, with their commands."""
    command = program() if command is None else command
    if isinstance(command, LazyCommand):
        command = command._load()
    if hasattr(command, "commands"):
        for word, one in command.commands.items():
            yield from verbs(one, (*name, word))
    else:
        yield " ".join(name), command


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ready")
    shutil.copytree(DEMO / "model", place / "MODEL")
    rows = (DEMO / "data" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    (place / "app.jsonl").write_text("\n".join(rows[::2]))
    (place / "lessons.jsonl").write_text("\n".join(rows[1::2]))
    (place / "chain.yaml").write_text(CHAIN)
    (place / "merge.yml").write_text(MERGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("KANNA_CACHE", str(place / "cache"))
        for words in READY:
            assert main([*words.split(), "--threads", "1", "-q"]) == 0, words
    return place


def test_every_verb_that_writes_a_folder_is_here() -> None:
    writing = {name for name, command in verbs() if any("--out" in option.opts for option in command.params)}
    assert writing == {name for name in MADE if name != "export gptq"} | NO_RESULTS
    for opened in (words for words in MADE.values() if words.endswith(".py")):
        assert re.search(r'main\(\["report", ', (UNIT / opened).read_text(encoding="utf-8")), opened


@pytest.mark.parametrize("verb", [verb for verb, words in MADE.items() if not words.endswith(".py")])
def test_its_folder_opens(
    verb: str,
    ready: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ready)
    monkeypatch.setenv("KANNA_CACHE", str(ready / "cache"))
    out = tmp_path / "D"
    words = [str(out) if word == "D" else word for word in MADE[verb].split()]
    assert main([*words, "--threads", "1", "-q"]) in (0, 3), capsys.readouterr().err
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    found = found_in(tmp_path)
    assert "D" in found or any(name.startswith("D/") for name in found), found
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<section") > 1, "a page with nothing but a card"


def found_in(place: Path) -> list[str]:
    """Names of the results that a page says it was made from."""
    text = (place / "page.md").read_text(encoding="utf-8").rstrip().rpartition("Made by kanna from ")[2]
    return [name.replace("\\", "") for name in text.removesuffix(".").split(", ")]


def test_a_set_in_its_model_opens_with_the_model(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready)
    shutil.copytree(ready / "INT", tmp_path / "INT")
    tuned = ["tune", str(tmp_path / "INT"), "--data", "lessons.jsonl", "--name", "law", "--steps", "1", "-q"]
    assert main([*tuned, "--allow-overlap"]) == 0
    inside = tmp_path / "INT" / "scales" / "law"
    assert main(["report", str(inside), "--out", str(tmp_path / "page.html")]) == 0
    assert found_in(tmp_path) == ["INT"]


def test_folders_of_something_else_are_told_what_to_give(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, which a model is scored on; a model that no step made; a folder of models; nothing at all."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    told = {
        tmp_path / "rows": "it holds rows: score a model on them",
        ready / "MODEL": "a model as it was before kanna: kanna eval",
        ready: "give the models in it, such as",
        tmp_path / "empty": "that a verb of kanna wrote results to with --out",
    }
    for place, said in told.items():
        assert main(["report", str(place), "--out", str(tmp_path / "page.html")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "holds no results" in error and said in error
