import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from toy import save_base

from kanna.checkpoint.location import locate
from kanna.checkpoint.reader import INDEX, Checkpoint, check_finite, refuse_quantized
from kanna.errors import InputError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = save_base("llama", tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


def edit_index(directory: Path, old: str, new: str) -> None:
    path = directory / INDEX
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_adapter_is_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(InputError) as error:
        Checkpoint.open(tmp_path)
    assert "an adapter of some/base" in error.value.problem and "kanna merge run" in error.value.remedy
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds adapter_config\.json"):
        Checkpoint.open(tmp_path)


def test_reads_what_was_saved_single_and_sharded(llama_base: Path, sharded: Path) -> None:
    one, many = Checkpoint.open(llama_base), Checkpoint.open(sharded)
    expected = safetensors.torch.load_file(llama_base / "model.safetensors")
    assert one.tensors.keys() == many.tensors.keys() == expected.keys()
    assert all(torch.equal(many.tensor(name), expected[name]) for name in expected)
    assert one.name == "base"
    assert one.bytes == many.bytes == sum(t.nbytes for t in expected.values())
    assert len(many.files) > 1


def test_parts_and_rows_of_a_tensor(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    name = "model.embed_tokens.weight"
    whole = checkpoint.tensor(name)
    columns = whole.shape[1]
    assert torch.equal(checkpoint.part(name, 3, 2 * columns + 1), whole.flatten()[3 : 2 * columns + 1])
    numbers = [5, 6, 7, 2, 2, 0, len(whole) - 1]
    assert torch.equal(checkpoint.rows(name, numbers, columns), whole[numbers])
    assert checkpoint.rows(name, [], columns).shape == (0, columns)
    stored = checkpoint.tensors[name]
    with stored.file.open("r+b") as file:
        file.truncate(stored.offset + 1)
    for read in (lambda: checkpoint.part(name, 0, 2), lambda: checkpoint.rows(name, [0], columns)):
        with pytest.raises(InputError, match="ends before its data do"):
            read()


def test_no_such_model() -> None:
    with pytest.raises(InputError, match="no such directory"):
        Checkpoint.open("no-such-owner/no-such-model")
    with pytest.raises(InputError, match="no such directory"):
        Checkpoint.open("/no/such/place at all")


def test_a_hub_id_in_the_local_cache(
    llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("a" * 40)
    for file in llama_base.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = Checkpoint.open("owner/name")
    assert checkpoint.name == "owner/name"
    assert checkpoint.tensors


def test_a_file_is_no_model(llama_base: Path) -> None:
    with pytest.raises(InputError, match="is a file"):
        locate(llama_base / "config.json")


def test_missing_safetensors(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        Checkpoint.open(llama)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_only(llama: Path, name: str) -> None:
    (llama / "model.safetensors").rename(llama / name)
    with pytest.raises(InputError, match="pickle") as error:
        Checkpoint.open(llama)
    assert name in str(error.value)
    assert "save_pretrained" in error.value.remedy


def test_truncated(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors holds"):
        Checkpoint.open(llama)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"nul"])
def test_bad_config(llama: Path, content: bytes) -> None:
    (llama / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        Checkpoint.open(llama)


def test_no_config(llama: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        Checkpoint.open(llama)


def test_index_names_a_missing_shard(sharded: Path) -> None:
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "path",
    ["../{}", "/{}", "a/../../{}", "..\\\\{}", "C:{}", "C:\\\\{}"],
)
def test_index_leaves_the_directory(sharded: Path, path: str) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    (sharded.parent / shard.name).write_bytes(shard.read_bytes())
    edit_index(sharded, shard.name, path.format(shard.name))
    with pytest.raises(InputError, match="outside the directory"):
        Checkpoint.open(sharded)


def test_index_names_a_tensor_that_is_not_there(sharded: Path) -> None:
    edit_index(sharded, "model.layers.0.mlp.up_proj.weight", "model.layers.9.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"layers\.9\.mlp"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 3}}])
def test_bad_index(sharded: Path, index: dict) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json"):
        Checkpoint.open(sharded)


def test_a_name_in_two_shards(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    tensors = safetensors.torch.load_file(first) | safetensors.torch.load_file(second)
    safetensors.torch.save_file(tensors, second)
    with pytest.raises(InputError, match="another file holds too"):
        Checkpoint.open(sharded)


def test_unknown_tensor(llama_base: Path) -> None:
    with pytest.raises(InputError, match="no tensor 'x'"):
        Checkpoint.open(llama_base).tensor("x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_the_tensor(bad: float) -> None:
    tensor = torch.ones(3, 4)
    assert check_finite(tensor, "w") is tensor
    tensor[1, 2] = bad
    with pytest.raises(InputError, match=r"layer\.w holds 1 NaN or infinite values of 12"):
        check_finite(tensor, "layer.w")


def test_quantized_bases_are_refused_by_name() -> None:
    refuse_quantized({"model_type": "llama"}, "M")
    with pytest.raises(InputError, match="'gptq'"):
        refuse_quantized({"quantization_config": {"quant_method": "gptq"}}, "M")
    with pytest.raises(InputError, match="already compressed by kanna"):
        refuse_quantized({"quantization_config": {"quant_method": "kanna"}}, "M")
    with pytest.raises(InputError, match="'unnamed'"):
        refuse_quantized({"quantization_config": []}, "M")
