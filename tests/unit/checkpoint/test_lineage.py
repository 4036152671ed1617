import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from counting import counted
from toy import save_base

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError


def test_base_hash_does_not_depend_on_shards_or_path(llama_base: Path, tmp_path: Path) -> None:
    expected = lineage.base_hash(Checkpoint.open(llama_base))
    for size, name in (("50KB", "few"), ("20KB", "elsewhere/many")):
        sharded = Checkpoint.open(save_base("llama", tmp_path / name, max_shard_size=size))
        assert len(sharded.files) > 1
        assert lineage.base_hash(sharded) == expected


@pytest.mark.parametrize("change", ["value", "name", "dtype", "config"])
def test_base_hash_sees_every_change(llama_base: Path, tmp_path: Path, change: str) -> None:
    directory = save_base("llama", tmp_path / "changed")
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.norm.weight"
    if change == "value":
        tensors[name][0] = torch.nextafter(tensors[name][0], torch.tensor(9.0))
    if change == "name":
        tensors["model.norm2.weight"] = tensors.pop(name)
    if change == "dtype":
        tensors[name] = tensors[name].view(torch.int32)
    if change == "config":
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    safetensors.torch.save_file(tensors, path)
    assert lineage.base_hash(Checkpoint.open(directory)) != lineage.base_hash(Checkpoint.open(llama_base))


def test_one_pass_finds_the_digests_that_readings_of_their_own_find(tmp_path: Path) -> None:
    directory = save_base("llama", tmp_path / "few", max_shard_size="20KB")
    checkpoint = Checkpoint.open(directory)
    with counted() as counts:
        found = lineage.scan(checkpoint, finite=True)
    assert found.files == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.safetensors")
    }
    assert found.base_hash == by_tensors(checkpoint) == lineage.base_hash(checkpoint)
    assert found.bad is None and counts.of(directory).readings == 1


def by_tensors(checkpoint: Checkpoint) -> str:
    """The hash that lineages hold, as it was first defined."""
    config = {
        k: v for k, v in checkpoint.config.items() if k not in ("_name_or_path", "transformers_version")
    }
    tensors = [
        [name, one.dtype, list(one.shape), hashlib.sha256(checkpoint.raw(name)).hexdigest()]
        for name, one in sorted(checkpoint.tensors.items())
    ]
    text = json.dumps([config, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_tensor_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save_base("llama", tmp_path / "base")
    expected = lineage.scan(Checkpoint.open(directory), finite=False)
    monkeypatch.setattr(lineage, "_PIECE", 1024)
    assert lineage.scan(Checkpoint.open(directory), finite=True) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    directory = save_base("llama", tmp_path / "base")
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, 2.0])
    tensors[name] = tensors[name].to(dtype)
    safetensors.torch.save_file(tensors, path)
    found = lineage.scan(Checkpoint.open(directory), finite=True)
    assert found.bad == lineage.NotFinite(name, 3, tensors[name].numel())
    with pytest.raises(InputError, match=r"up_proj\.weight holds 3 NaN or infinite"):
        found.refuse_not_finite()
    assert lineage.scan(Checkpoint.open(directory), finite=False).bad is None


def test_verify_takes_the_digests_of_a_pass(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    with counted() as counts:
        lineage.verify(llama, lineage.scan(checkpoint, finite=False))
    assert counts.of(llama).hashes == 1 and counts.of(llama).readings == 1
    bad = lineage.Scan("", {"model.safetensors": "0"})
    with pytest.raises(InputError, match=r"model\.safetensors has changed"):
        lineage.verify(llama, bad)


def test_verify_accepts_what_was_written(llama: Path) -> None:
    found = lineage.verify(llama)
    assert found is not None
    assert found.base.name == "base"
    assert found.steps[0].method == "toy"
    assert set(found.files) == {"config.json", "generation_config.json", "model.safetensors"}


def test_verify_says_nothing_of_a_foreign_directory(llama_base: Path) -> None:
    assert lineage.verify(llama_base) is None


def test_data_that_no_longer_match(llama: Path) -> None:
    path = llama / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors has changed"):
        lineage.verify(llama)


def test_a_recorded_file_is_missing(llama: Path) -> None:
    (llama / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"generation_config\.json is missing"):
        lineage.verify(llama)


def test_the_card_may_be_edited(llama: Path) -> None:
    (llama / "README.md").write_text("my notes")
    lineage.verify(llama)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 3}, "format_version 3"),
        ({"format_version": "1"}, "no sound format_version"),
        ({"base": {"name": "x"}}, "base.hash"),
        ({"surprise": 1}, "surprise"),
        ({"files": ["a"]}, "files"),
    ],
)
def test_bad_lineage(llama: Path, changes: dict, text: str) -> None:
    path = llama / "kanna.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=text) as error:
        lineage.read(llama)
    if text == "format_version 3":
        assert error.value.remedy == "upgrade kanna"


def test_versions_and_run_record(tmp_path: Path) -> None:
    assert lineage.versions().keys() == {"kanna", "torch", "transformers"}
    path = lineage.write_run_record(tmp_path / "out", {"seconds": 1.5})
    assert path == tmp_path / "out.run.json"
    assert json.loads(path.read_text()) == {"seconds": 1.5}
