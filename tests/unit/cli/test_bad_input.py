"""The request or the input is wrong: exit code 2, one clear message, nothing written."""

import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_model import TEXT, save_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAIN = ("--keep", "0.7", "--method", "plain", "--align", "1")


def missing_weights(base: Path) -> None:
    (base / WEIGHTS).unlink()


def truncated_weights(base: Path) -> None:
    data = (base / WEIGHTS).read_bytes()
    (base / WEIGHTS).write_bytes(data[:-100])


def flipped_header(base: Path) -> None:
    data = bytearray((base / WEIGHTS).read_bytes())
    data[40] ^= 0xFF
    (base / WEIGHTS).write_bytes(data)


def flipped_header_length(base: Path) -> None:
    data = bytearray((base / WEIGHTS).read_bytes())
    data[:8] = struct.pack("<Q", 2**60)
    (base / WEIGHTS).write_bytes(data)


def missing_shard(base: Path) -> None:
    shard(base)["x"] = "model-00009-of-00009.safetensors"
    edit(base / INDEX, lambda index: index["weight_map"].update(x="model-00009-of-00009.safetensors"))


def shard_outside(base: Path) -> None:
    shard(base)
    edit(base / INDEX, lambda index: index["weight_map"].update(x="../elsewhere.safetensors"))


def pickle_only(base: Path) -> None:
    (base / WEIGHTS).rename(base / "pytorch_model.bin")


def unknown_architecture(base: Path) -> None:
    edit(base / "config.json", lambda config: config.update(architectures=["LlamaForCausalLN"]))


def unknown_model_type(base: Path) -> None:
    edit(base / "config.json", lambda config: config.update(model_type="lama"))


def no_config(base: Path) -> None:
    (base / "config.json").unlink()


def broken_config(base: Path) -> None:
    (base / "config.json").write_text("{")


def other_shapes(base: Path) -> None:
    edit(base / "config.json", lambda config: config.update(intermediate_size=48))


def already_quantized(base: Path) -> None:
    edit(base / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq"}))


def shard(base: Path) -> dict[str, str]:
    """Save the model again in small shards."""
    shutil.rmtree(base)
    save_model(base, max_shard_size="20KB")
    return json.loads((base / INDEX).read_text())["weight_map"]


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


DAMAGES = [
    (missing_weights, WEIGHTS),
    (truncated_weights, WEIGHTS),
    (flipped_header, WEIGHTS),
    (flipped_header_length, WEIGHTS),
    (missing_shard, "model-00009-of-00009.safetensors"),
    (shard_outside, "../elsewhere.safetensors"),
    (pickle_only, "pytorch_model.bin"),
    (unknown_architecture, "LlamaForCausalLN"),
    (unknown_model_type, "lama"),
    (no_config, "config.json"),
    (broken_config, "config.json"),
    (other_shapes, "shape"),
]


@pytest.fixture
def refused(kanna, unchanged, tmp_path):
    """Run a command that must be refused: code 2, all of `named` on stderr, nothing new on disk."""

    def check(*words: object, named: str) -> None:
        before = unchanged(tmp_path)
        ran = kanna(*words, "-q")
        assert ran.code == 2, (ran.code, ran.err)
        assert named in ran.err
        assert ran.out == ""
        assert ran.err.count("kanna: error:") == 1 and "Traceback" not in ran.err
        assert unchanged(tmp_path) == before

    return check


@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damaged_models(refused, base, tmp_path, damage, named):
    damage(base)
    refused("lowrank", base, *PLAIN, "--out", tmp_path / "new" / "out", named=named)
    refused("inspect", base, named=named)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused, base, tmp_path, value):
    tensors = load_file(base / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    refused("lowrank", base, *PLAIN, "--out", tmp_path / "new" / "out", named="layers.1.mlp.up_proj")
    refused("inspect", base, "--spectra", named="layers.1.mlp.up_proj")


def test_weights_that_are_not_finite_with_calibration(refused, base, text, tmp_path):
    tensors = load_file(base / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    words = ("--keep", 0.7, "--align", 1, "--calibration", text, "--out", tmp_path / "out")
    for method in ("anchored", "whitened", "asvd", "fwsvd"):
        refused("lowrank", base, *words, "--method", method, named="layers.1.mlp.up_proj")


def test_embedding_that_is_not_finite(refused, base, text, tmp_path):
    tensors = load_file(base / WEIGHTS)
    tensors["model.embed_tokens.weight"][3, 5] = float("nan")
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    words = ("--keep", 0.7, "--align", 1, "--calibration", text, "--out", tmp_path / "out")
    refused("lowrank", base, *words, named="model.embed_tokens.weight")


def test_a_base_that_is_quantized(refused, base, tmp_path):
    already_quantized(base)
    refused("lowrank", base, *PLAIN, "--out", tmp_path / "out", named="gptq")


def test_a_base_that_kanna_compressed_into_a_form_that_nobody_takes(refused, small, tmp_path):
    """Low-rank forms are taken (tests/unit/chains); one of a newer kanna is not."""
    edit(
        small / "config.json",
        lambda config: next(iter(config["quantization_config"]["forms"].values())).update(form="newer"),
    )
    (small / "kanna.json").unlink()  # or its sha256 would be what is wrong
    refused("lowrank", small, *PLAIN, "--out", tmp_path / "out", named="unknown form 'newer'")


def flip_last_byte(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)


def test_data_that_do_not_match_their_sha256(refused, small, text, tmp_path):
    flip_last_byte(small)
    refused("eval", small, "--text", text, named="sha256")
    refused("generate", small, "--prompt", "w1", named="sha256")
    refused("export", small, "--format", "dense", "--out", tmp_path / "out", named="sha256")
    refused("lowrank", small, *PLAIN, "--out", tmp_path / "out", named="sha256")


def drop_factor(tensors: dict[str, torch.Tensor]) -> str:
    name = next(name for name in tensors if name.endswith("reduce.weight"))
    del tensors[name]
    return name


def reshape_factor(tensors: dict[str, torch.Tensor]) -> str:
    name = next(name for name in tensors if name.endswith("expand.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    return name


@pytest.mark.parametrize("change", [drop_factor, reshape_factor])
def test_declared_factors_missing_or_of_another_shape(refused, small, text, tmp_path, change):
    tensors = load_file(small / WEIGHTS)
    name = change(tensors)
    save_file(tensors, small / WEIGHTS, metadata={"format": "pt"})
    (small / "kanna.json").unlink()  # or its sha256 would be what is wrong
    refused("eval", small, "--text", text, named=name)
    refused("generate", small, "--prompt", "w1", named=name)
    refused("inspect", small, named=name)
    refused("export", small, "--format", "dense", "--out", tmp_path / "out", named=name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--select", "router"), "router"),
        (("--select", "q@7"), "no layer 7"),
        (("--select", "re:nothing"), "nothing"),
        (("--select", ""), "selection"),
        (("--layers", "9"), "no layer 9"),
        (("--layers", "1", "--matrices", "q@0"), "--matrices"),
        (("--layers", "1", "--select", "q"), "--select"),
    ],
)
def test_selections_that_match_nothing(refused, base, tmp_path, words, named):
    refused("lowrank", base, *PLAIN, *words, "--out", tmp_path / "out", named=named)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, "nan", "inf"])
def test_keep_outside_its_range(refused, base, tmp_path, keep):
    refused("lowrank", base, "--keep", keep, "--method", "plain", "--out", tmp_path / "out", named="keep")


def test_keep_below_what_is_reachable(refused, base, tmp_path):
    words = ("--keep", 0.01, "--method", "plain", "--out", tmp_path / "out")
    refused("lowrank", base, *words, named="least")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "keep or rank"),
        (("--keep", 0.8, "--rank", 4), "keep or rank"),
        (("--rank", 0), "rank"),
        (("--keep", 0.8), "--calibration"),
        (("--keep", 0.8, "--method", "svd"), "method"),
        (("--keep", 0.8, "--method", "plain", "--device", "nowhere"), "nowhere"),
    ],
)
def test_requests_that_make_no_sense(refused, base, tmp_path, words, named):
    refused("lowrank", base, *words, "--out", tmp_path / "out", named=named)


def test_no_output_directory(refused, base):
    refused("lowrank", base, *PLAIN, named="--out")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (" ".join(TEXT.split()[:100]).encode(), "101 tokens"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"w1 w2 \xff\xfe w3", "not UTF-8"),
        (None, "does not exist"),
    ],
)
def test_calibration_texts(refused, base, tmp_path, content, named):
    path = tmp_path / "calibration.txt"
    if content is not None:
        path.write_bytes(content)
    words = ("--keep", 0.8, "--calibration", path, "--out", tmp_path / "out")
    refused("lowrank", base, *words, named=named)


@pytest.mark.parametrize("line", ["{", "[1]", '{"prompt": "w1"}', '{"text": 5}'])
def test_calibration_rows(refused, base, tmp_path, line):
    path = tmp_path / "calibration.jsonl"
    path.write_text(json.dumps({"text": TEXT}) + "\n" + line + "\n")
    words = ("--keep", 0.8, "--calibration", path, "--out", tmp_path / "out")
    refused("lowrank", base, *words, named="line 2")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_an_output_that_exists(refused, base, tmp_path, make):
    out = tmp_path / "out"
    make(out)
    refused("lowrank", base, *PLAIN, "--out", out, named="exists")


def test_force_replaces_checkpoints_only(refused, kanna, base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    refused("lowrank", base, *PLAIN, "--out", out, "--force", named="out")
    shutil.rmtree(out)
    assert kanna("lowrank", base, *PLAIN, "--out", out).code == 0
    assert kanna("lowrank", base, *PLAIN, "--out", out, "--force").code == 0


def test_no_tokenizer_where_text_is_given(refused, base, text, tmp_path):
    for file in base.glob("tokenizer*"):
        file.unlink()
    words = ("--keep", 0.8, "--calibration", text, "--out", tmp_path / "out")
    refused("lowrank", base, *words, named="no tokenizer")
    refused("eval", base, "--text", text, named="no tokenizer")
    refused("generate", base, "--prompt", "w1", named="no tokenizer")


def test_no_space_before_the_run(refused, base, tmp_path, monkeypatch):
    from kanna.checkpoint import writer

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    refused("lowrank", base, *PLAIN, "--out", tmp_path / "new" / "out", named="space")


def test_no_space_in_the_middle(kanna, base, tmp_path, monkeypatch):
    """What was computed before stays, and a repeated command goes on with it."""
    import kanna.runs.output as output

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ("lowrank", base, *PLAIN, "--out", tmp_path / "new" / "out")
    with monkeypatch.context() as patched:
        patched.setattr(output, "write_tensors", full)
        ran = kanna(*words)
    assert ran.code == 2 and "space" in ran.err and "--resume" in ran.err, ran.err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.kanna-work"]
    assert kanna(*words, "--resume").code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out", "out.run.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_space_for_unfinished_work(refused, base, tmp_path, monkeypatch, error):
    from kanna.checkpoint import tensor_file

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tensor_file, "save_file", full)
    refused("lowrank", base, *PLAIN, "--out", tmp_path / "new" / "out", named="space")


def test_no_model_there(refused, tmp_path, text):
    nowhere = tmp_path / "nowhere"
    refused("inspect", nowhere, named="nowhere")
    refused("lowrank", nowhere, *PLAIN, "--out", tmp_path / "out", named="nowhere")
    refused("eval", nowhere, "--text", text, named="nowhere")
    refused("generate", nowhere, "--prompt", "w1", named="nowhere")
    refused("export", nowhere, "--format", "dense", "--out", tmp_path / "out", named="nowhere")


@pytest.mark.parametrize("name", ["picture.txt", "missing/picture.png"])
def test_pictures_that_cannot_be_written(refused, base, tmp_path, name):
    refused("inspect", base, "--plot", tmp_path / name, named=Path(name).parts[0])


def test_an_empty_prompt(refused, base):
    refused("generate", base, "--prompt", " ", named="prompt")


def test_an_unknown_dtype(refused, base, text):
    refused("eval", base, "--text", text, "--dtype", "int3", named="int3")
