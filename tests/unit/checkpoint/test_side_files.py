"""What an output gets of its source beside the weights: everything that makes the model what it is."""

import os
from pathlib import Path

import pytest
from exported import dense
from toy import save_base

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.side_files import copy_side_files, files_of_model, side_files
from kanna.errors import InputError
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.restore import restore
from kanna.methods.laser.run import laser_apply
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.run import lowrank

COPIED = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "LICENSE",
    "added_tokens.json",
    "additional_chat_templates/tool.jinja",
    "assets/figure.png",
    "bpe.codes",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "configuration_own.py",
    "custom_generate/generate.py",
    "custom_generate/requirements.txt",
    "dict.txt",
    "generation_config.json",
    "merges.txt",
    "modeling_own.py",
    "optimizer_own.py",
    "normalizer.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "source.spm",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "words.tiktoken",
]
LEFT_OUT = [
    "2_Dense/pytorch_model.bin",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "flax_model.msgpack",
    "model.Q4.gguf",
    "optimizer.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "trainer_state.json",
    "training_args.bin",
    "vae/model.safetensors",
    "weights.PTH",
]
FOLDERS = {
    "optimizer_0/": "__0_0.distcp",
    "checkpoint-500/": "trainer_state.json",
    "onnx/": "model_config.json",
    "runs/": "events",
}
NEITHER = [
    ".git/HEAD",
    ".gitattributes",
    ".cache/x",
    ".DS_Store",
    "__pycache__/own.pyc",
    "README.md",
    "recipe.yaml",
    "kanna-laser.json",
    "kanna-originals/model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "half.tmp",
    "modules/.git/HEAD",
]
MODULES = '[{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}]'


def put(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode() + b"\r\n\xff")


def held(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    put(source, *COPIED, *LEFT_OUT, *NEITHER, *(folder + name for folder, name in FOLDERS.items()))
    put(source, "model-1.safetensors", "part/model-2.safetensors")
    (source / "modules.json").write_text(MODULES)
    return source


def test_everything_is_copied_but_weights_and_what_programs_leave_behind(
    source: Path, tmp_path: Path
) -> None:
    weights = [source / "model-1.safetensors", source / "part" / "model-2.safetensors"]
    found = copy_side_files(source, tmp_path / "out", weights)
    before = held(source)
    assert held(tmp_path / "out") == {name: before[name] for name in [*COPIED, "modules.json"]}
    assert sorted(found.copied) == sorted([*COPIED, "modules.json"])
    assert sorted(found.left_out) == sorted([*LEFT_OUT, *FOLDERS])
    assert found.bytes == sum(len(before[name]) for name in found.copied)
    whole = set(files_of_model(source, weights))
    ours = {
        "README.md",
        "recipe.yaml",
        "kanna-laser.json",
        "kanna-originals/model.safetensors",
        "config.json",
    }
    parts = {"model-1.safetensors", "part/model-2.safetensors", "model.safetensors.index.json"}
    assert whole == {*found.copied, *ours, *parts}


def test_links(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    put(source, "vocab.txt")
    put(elsewhere, "blob", "more/private")
    (source / "tokenizer.json").symlink_to(elsewhere / "blob")  # as in the hub's cache
    (source / "gone.json").symlink_to(elsewhere / "nothing")
    (source / "more").symlink_to(elsewhere / "more")
    (source / "again").symlink_to(source)
    os.mkfifo(source / "pipe")
    found = copy_side_files(source, tmp_path / "out", [])
    assert found.copied == ("tokenizer.json", "vocab.txt")
    assert sorted(found.left_out) == ["again/", "gone.json", "more/", "pipe"]
    assert held(tmp_path / "out")["tokenizer.json"] == b"blob\r\n\xff"


@pytest.mark.parametrize("content", ["{}", "[1]", "", "[[", '[{"path": "../elsewhere"}]', '[{"path": 5}]'])
def test_modules_that_are_none(content: str, tmp_path: Path) -> None:
    put(tmp_path, "2_Dense/model.safetensors")
    (tmp_path / "modules.json").write_text(content)
    assert side_files(tmp_path, []).left_out == ("2_Dense/model.safetensors",)


EXTRAS = [
    "dict.txt",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
    "custom_generate/generate.py",
    "own.py",
]


def test_every_verb_copies_alike(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    low, edited = tmp_path / "low", tmp_path / "edited"
    edit = LaserConfig(edits=("up:1:0.5",), keep_originals=True)
    lowrank(base, tmp_path / "plain", LowRankConfig(method="plain", keep=0.9))
    (plain,) = (lineage.read(tmp_path / "plain") or pytest.fail()).steps
    assert "left_out" not in plain.scores
    put(base, *EXTRAS, "pytorch_model.bin", ".git/HEAD")
    (base / "modules.json").write_text(MODULES)
    lowrank(base, low, LowRankConfig(method="plain", keep=0.9))
    laser_apply(base, edited, edit)
    put(
        edited, "laser-search.json", "search.json"
    )  # what a search says of this model, and of somebody else's
    restored = restore(edited, tmp_path / "back")
    assert (restored / "search.json").is_file() and not (restored / "laser-search.json").exists()
    assert not (restored / "kanna-laser.json").exists() and not (restored / "kanna-originals").exists()
    laser_apply(base, tmp_path / "again", LaserConfig(edits=edit.edits))
    outs = [
        low,
        dense(low, tmp_path / "dense"),
        restored,
        restore(tmp_path / "again", tmp_path / "whole", base=base),
    ]
    extras = {name: held(base)[name] for name in [*EXTRAS, "modules.json"]}
    for out in outs:
        found = held(out)
        assert {name: found.get(name) for name in extras} == extras, out
        assert not {"pytorch_model.bin", ".git/HEAD"} & found.keys()
    recorded = lineage.verify(low)
    assert recorded is not None and extras.keys() <= recorded.files.keys()
    assert recorded.steps[0].scores["left_out"] == ["pytorch_model.bin"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "tf_model.h5"])
def test_every_verb_refuses_a_module_that_would_be_lost(tmp_path: Path, name: str) -> None:
    """At once; the model without its last layer is another one, which nothing can load."""
    base = save_base("llama", tmp_path / "base")
    laser_apply(base, tmp_path / "edited", LaserConfig(edits=("up:1:0.5",)))
    (base / "modules.json").write_text(MODULES)
    put(base, "1_Pooling/config.json", "2_Dense/config.json", f"2_Dense/{name}")
    before, out = held(tmp_path), tmp_path / "out"
    for call in (
        lambda: lowrank(base, out, LowRankConfig(method="plain", keep=0.9)),
        lambda: lowrank(base, None, LowRankConfig(method="plain", keep=0.9), dry_run=True),
        lambda: laser_apply(base, out, LaserConfig(edits=("up:1:0.5",))),
        lambda: kanna.laser_search(base, tmp_path / "task.jsonl", out),
        lambda: dense(base, out),
        lambda: restore(tmp_path / "edited", out, base=base),
    ):
        with pytest.raises(InputError, match=f"2_Dense/{name}(.|\n)*convert it"):
            call()
        assert held(tmp_path) == before
    put(base, "2_Dense/model.safetensors")
    assert lowrank(base, out, LowRankConfig(method="plain", keep=0.9)).passed


def test_copied_code_is_not_run(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\ndef generate(model, **_): return None\n"
    for name in ("custom_generate/generate.py", "modeling_own.py", "sitecustomize.py", "conftest.py"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(code)
    lowrank(base, tmp_path / "out", LowRankConfig(method="plain", keep=0.9))
    model, _ = kanna.load(tmp_path / "out")
    assert (tmp_path / "out" / "custom_generate" / "generate.py").read_text() == code
    assert model is not None and not mark.exists()
