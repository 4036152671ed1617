"""Whole numbers in other formats: read bit by bit, and by their own loaders where these are installed."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from quantized_models import SIZES, llama, matrices, phi3, quantized
from safetensors.torch import load_file, save_file

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.runs.source import Source

Words = np.ndarray[Any, np.dtype[np.uint32]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Directory of the model in whole numbers; made once."""
    root, made = tmp_path_factory.mktemp("packed"), {}

    def directory(bits: int = 4, group: int | str = 32, symmetric: bool = False) -> Path:
        key = (bits, group, symmetric)
        if key not in made:
            made[key] = quantized(
                base, root / f"{bits}-{group}-{symmetric}", bits, group, symmetric=symmetric
            )
        return made[key]

    return directory


def stream(words: Any, bits: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(rows, count) codes of rows of words, taken as one long number each."""
    rows = []
    for row in np.asarray(words).view(np.uint32):
        whole = sum(int(word) << (32 * place) for place, word in enumerate(row))
        rows.append([(whole >> (bits * place)) & ((1 << bits) - 1) for place in range(count)])
    return np.array(rows)


def layer(tensors: dict[str, torch.Tensor], path: str) -> dict[str, Any]:
    """Tensors of a module by their suffixes; their bits where there is no such dtype in numpy."""
    start = f"{path}."
    return {
        name.removeprefix(start): value.numpy() for name, value in tensors.items() if name.startswith(start)
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (4, 32), (4, "channel"), (8, 32)])
def test_compressed_tensors_bit_by_bit(
    bits: int, group: int | str, symmetric: bool, packed: Callable[..., Path], tmp_path: Path
) -> None:
    directory = packed(bits, group, symmetric)
    kanna.export_quantized(directory, tmp_path / "out", "compressed-tensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for path, codes in matrices(directory).items():
        held, (m, n) = layer(written, path), codes.codes.shape
        assert (stream(held["weight_packed"], bits, n) == codes.codes.numpy()).all()
        assert (held["weight_scale"] == codes.scale.numpy().astype(np.float16)).all()
        assert held["weight_shape"].tolist() == [m, n]
        if symmetric:
            assert "weight_zero_point" not in held
        else:
            down = np.ascontiguousarray(held["weight_zero_point"].T)
            assert (stream(down, bits, m) == codes.zero.numpy().T).all()
    source = load_file(directory / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(source[name], written[name])


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (4, "channel"), (8, 32)])
def test_gptq_bit_by_bit(bits: int, group: int | str, packed: Callable[..., Path], tmp_path: Path) -> None:
    directory = packed(bits, group)
    kanna.export_quantized(directory, tmp_path / "out", "gptq")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for path, codes in matrices(directory).items():
        held, (m, n) = layer(written, path), codes.codes.shape
        assert (stream(np.ascontiguousarray(held["qweight"].T), bits, n) == codes.codes.numpy()).all()
        assert (stream(held["qzeros"], bits, m) == codes.zero.numpy().T).all()
        assert (held["scales"] == codes.scale.numpy().T.astype(np.float16)).all()
        size = n if group == "channel" else 32
        assert held["g_idx"].tolist() == [place // size for place in range(n)]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["checkpoint_format"] == "gptq_v2" and config["group_size"] == (
        -1 if group == "channel" else 32
    )
    assert config == json.loads((tmp_path / "out" / "quantize_config.json").read_text())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(3, 32), (4, "channel"), (8, 32)])
@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
def test_what_was_exported_comes_back(
    format: str, bits: int, group: int | str, symmetric: bool, packed: Callable[..., Path], tmp_path: Path
) -> None:
    """Same codes and zero-points, also those of symmetric grids that nobody stores; scales in float16."""
    directory = packed(bits, group, symmetric)
    kanna.export_quantized(directory, tmp_path / "out", format)  # type: ignore[arg-type]
    kanna.import_quantized(tmp_path / "out", tmp_path / "back")
    before, after = matrices(directory), matrices(tmp_path / "back")
    assert before.keys() == after.keys()
    for path, codes in before.items():
        back = after[path]
        assert torch.equal(back.codes.int(), codes.codes.int()), path
        assert torch.equal(back.zero.int(), codes.zero.int()), path
        assert torch.equal(back.scale, codes.scale.half().float()), path


def test_awq_word_by_word(packed: Callable[..., Path], tmp_path: Path) -> None:
    """Nibble i of a word holds output 0, 2, 4, 6, 1, 3, 5, 7 of eight."""
    directory = packed()
    kanna.export_quantized(directory, tmp_path / "out", "awq")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for path, codes in matrices(directory).items():
        held = layer(written, path)
        for name, values in (("qweight", codes.codes.numpy().T), ("qzeros", codes.zero.numpy().T)):
            words = held[name].view(np.uint32)
            for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                assert (((words >> (4 * place)) & 15) == values[:, output::8]).all()
        assert (held["scales"] == codes.scale.numpy().T.astype(np.float16)).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, False), (4, True), (8, False)])
def test_mlx_bit_by_bit(bits: int, symmetric: bool, packed: Callable[..., Path], tmp_path: Path) -> None:
    directory = packed(bits, 32, symmetric)
    kanna.export_quantized(directory, tmp_path / "out", "mlx")
    written = dict(Checkpoint.open(tmp_path / "out").stream())  # old safetensors read no uint32
    for path, codes in matrices(directory).items():
        held, n = layer(written, path), codes.codes.shape[1]
        assert held["weight"].dtype == np.uint32
        assert (stream(held["weight"], bits, n) == codes.codes.numpy()).all()
        wide = stream(held["weight"], bits, n) * np.repeat(held["scales"], 32, 1)
        np.testing.assert_allclose(
            wide + np.repeat(held["biases"], 32, 1),
            codes.weight.numpy(),
            rtol=0,
            atol=2e-6 * float(codes.scale.max()) * (1 << bits),
        )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mlx_multiplies_out_the_same(bits: int, packed: Callable[..., Path], tmp_path: Path) -> None:
    core = pytest.importorskip("mlx.core", reason="mlx is not installed")
    directory = packed(bits)
    kanna.export_quantized(directory, tmp_path / "out", "mlx")
    written = core.load(str(tmp_path / "out" / "model.safetensors"))
    for path, codes in matrices(directory).items():
        parts = [written[f"{path}.{name}"] for name in ("weight", "scales", "biases")]
        found = np.array(core.dequantize(*parts, group_size=32, bits=bits))
        largest = float(codes.scale.max()) * (1 << bits)
        assert np.abs(found - codes.weight.numpy()).max() <= 1e-6 * largest


LOADERS = {
    "compressed-tensors": "compressed_tensors",
    "mlx": "mlx_lm",
    "gptq": None,
    "awq": None,
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("format", sorted(LOADERS))
def test_its_loader_computes_what_kanna_does(
    format: str, bits: int, symmetric: bool, packed: Callable[..., Path], tmp_path: Path
) -> None:
    if format == "awq" and bits != 4:
        return
    package = LOADERS[format]
    if package is not None and find_spec(package) is None:  # not imported: it would change the environment
        pytest.skip(f"{package} is not installed")
    done = kanna.export_quantized(packed(bits, 32, symmetric), tmp_path / "out", format, check=True)
    assert done.check is not None and done.check.passed, done.check
    assert done.check.difference is not None and 0 < done.check.difference < 5e-3
    assert done.check.continued == (16, 16)


def test_a_wrong_export_fails_its_check(
    packed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one would that quantised again: other scales than those of the source."""
    from kanna.quant.layouts import gptq

    right = gptq.tensors
    monkeypatch.setattr(
        gptq, "tensors", lambda codes: {**right(codes), "scales": 1.1 * right(codes)["scales"]}
    )
    done = kanna.export_quantized(packed(), tmp_path / "out", "gptq", check=True)
    assert done.check is not None and done.check.passed is False and not done.passed


def test_without_the_loader_it_is_not_checked_and_that_is_recorded(
    packed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlx.core", None)
    words = ["export", str(packed()), "--format", "mlx", "--out", str(tmp_path / "out"), "--check"]
    assert main(words) == 0
    assert "not checked: mlx is not installed" in capsys.readouterr().out
    recorded = lineage.read(tmp_path / "out")
    assert recorded is not None
    assert recorded.steps[-1].scores["check"]["checked"] is False
    assert recorded.steps[-1].scores["check"]["passed"] is None


def test_fused_slices_on_one_grid_are_one_matrix(tmp_path: Path) -> None:
    base = phi3(tmp_path / "base")
    kanna.quantize(base, tmp_path / "packed", kanna.QuantizeConfig(bits=4, group="32", method="minmax"))
    done = kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gptq", check=True)
    assert done.check is not None and done.check.passed
    held = layer(load_file(tmp_path / "out" / "model.safetensors"), "model.layers.0.self_attn.qkv_proj")
    values = stream(np.ascontiguousarray(held["qweight"].T), 4, 64) - np.repeat(
        stream(held["qzeros"], 4, 128).T, 32, 1
    )
    weight = values * np.repeat(held["scales"].T.astype(np.float32), 32, 1)
    source = Source.open(tmp_path / "packed")
    query, key, value = (m for m in source.inventory.matrices if m.layer == 0 and m.role in ("q", "k", "v"))
    expected = np.concatenate([source.weight(part).numpy() for part in (query, key, value)])
    np.testing.assert_allclose(weight, expected, rtol=1e-3)


def test_scales_that_float16_does_not_hold(packed: Callable[..., Path], tmp_path: Path) -> None:

    directory = tmp_path / "odd"
    shutil.copytree(packed(), directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name][0, 0], tensors[name][0, 1], tensors[name][1, 0] = 1e-9, -1e-9, 0.5
    save_file(tensors, file, {"format": "pt"})
    scales = kanna.export_quantized(directory, None, "gptq", dry_run=True).scales
    assert scales is not None and scales.vanished == 2 and scales.overflowed == 0
    assert 1e-4 < scales.largest <= 2**-11
    assert scales.scales == sum(codes.scale.numel() for codes in matrices(directory).values())
    assert kanna.export_quantized(directory, None, "mlx", dry_run=True).scales is None
    tensors[name][0, 0] = 1e5
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 scales of model.layers.1.mlp.up_proj are too large for float16"):
        kanna.export_quantized(directory, tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()


REFUSED = [
    ("compressed-tensors", {"group": 64}, "mlp.down_proj has 96 inputs, no multiple of 64"),
    ("mlx", {"group": 16}, "holds groups of 32, 64, 128 inputs: .* has groups of 16"),
    ("mlx", {"group": "channel"}, "has one of 96 inputs a row"),
    ("gptq", {"bits": 5}, "gptq holds 2, 3, 4, 8 bits: .* has 5"),
    ("awq", {"bits": 3}, "awq holds 4 bits: .* has 3"),
    ("gptq", {"bits_of": ("down=8",)}, "gptq holds one kind of whole numbers a model"),
    ("gptq", {"skip": "down"}, "mlp.down_proj is dense"),
]


@pytest.mark.parametrize(("format", "settings", "said"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name(
    format: str, settings: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    config = kanna.QuantizeConfig(**{"bits": 4, "group": "32", "method": "minmax", **settings})
    kanna.quantize(base, tmp_path / "packed", config)
    with pytest.raises(InputError, match=said):
        kanna.export_quantized(tmp_path / "packed", tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "packed.run.json"]


def test_factors_and_dense_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer in whole numbers"):
        kanna.export_quantized(base, tmp_path / "out", "gptq")
    kanna.lowrank(
        base, tmp_path / "small", kanna.LowRankConfig(method="plain", keep=0.5, allocation="uniform")
    )
    with pytest.raises(InputError, match=r"layers.0.mlp.\w+_proj is no matrix .* low_rank form"):
        kanna.export_quantized(tmp_path / "small", tmp_path / "out", "gptq")


def test_other_bits_for_some_layers(base: Path, tmp_path: Path) -> None:
    """compressed-tensors has groups of layers, MLX names the exceptions."""
    pytest.importorskip("compressed_tensors")
    directory = quantized(base, tmp_path / "packed", bits_of=("down=8",), symmetric=True)
    done = kanna.export_quantized(directory, tmp_path / "ct", "compressed-tensors", check=True)
    assert done.check is not None and done.check.passed, done.check
    kanna.export_quantized(directory, tmp_path / "mlx", "mlx")
    said = json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"]
    assert said["bits"] == 4 and said["model.layers.1.mlp.down_proj"]["bits"] == 8


def test_it_is_whole_or_not_there_and_replaces_nothing_unasked(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    directory, out = packed(), tmp_path / "out"
    before = lineage.file_digests(directory)
    kanna.export_quantized(directory, out, "gptq")
    first = lineage.file_digests(out)
    with pytest.raises(InputError, match="exists already"):
        kanna.export_quantized(directory, out, "gptq")
    with pytest.raises(InputError, match="never touched"):
        kanna.export_quantized(directory, directory / "inside", "gptq")
    kanna.export_quantized(directory, out, "gptq", force=True)
    assert lineage.file_digests(out) == first and lineage.file_digests(directory) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_words_that_go_with_dense_only(packed: Callable[..., Path], tmp_path: Path) -> None:
    words = ["export", str(packed()), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "gptq", "--resume"]) == 2
    assert main([*words, "--format", "dense", "--check"]) == 2
    assert main([*words, "--format", "gpt"]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*words, "--format", "dense"]) == 0


@pytest.fixture
def tuned(packed: Callable[..., Path], tmp_path: Path) -> Path:
    """The model with a set of scales called law, which is not in use."""
    directory = tmp_path / "tuned"
    shutil.copytree(packed(), directory)
    model, _ = kanna.load(directory)
    generator = torch.Generator().manual_seed(2)
    for change in kanna.scales.trainable(model, "group").values():
        change.data = torch.rand(change.shape, generator=generator) - 0.5
    kanna.scales.save(model, "law")
    return directory


def test_scales_of_a_task_are_multiplied_in(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tuned), "--format", "gptq", "--check", "--out"]
    assert main([*words, str(tmp_path / "law"), "--scales", "law"]) == 0
    assert "with the set of scales 'law'" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "base"), "--scales", "base"]) == 0
    with_set, without = (load_file(tmp_path / name / "model.safetensors") for name in ("law", "base"))
    changes = load_file(next((tuned / "scales" / "law").glob("*.safetensors")))
    for path, codes in matrices(tuned).items():
        (change,) = (value for name, value in changes.items() if path in name)
        expected = codes.scale * (1 + change)
        assert torch.equal(with_set[f"{path}.scales"], expected.T.half()), path
        assert torch.equal(without[f"{path}.scales"], codes.scale.T.half())
        assert torch.equal(with_set[f"{path}.qweight"], without[f"{path}.qweight"])
        assert torch.equal(with_set[f"{path}.qzeros"], without[f"{path}.qzeros"])
    recorded = [lineage.read(tmp_path / name) for name in ("law", "base")]
    assert [one and one.steps[-1].config["scales"] for one in recorded] == ["law", None]
    assert not (tmp_path / "law" / "scales").exists()


def test_dense_weights_with_the_scales_of_a_task(tuned: Path, tmp_path: Path) -> None:
    for name in ("law", "base"):
        words = ["export", str(tuned), "--format", "dense", "--out", str(tmp_path / name), "--scales", name]
        assert main(words) == 0
    path = "model.layers.1.mlp.up_proj"
    codes, changes = matrices(tuned)[path], load_file(next((tuned / "scales" / "law").glob("*.safetensors")))
    (change,) = (value for name, value in changes.items() if path in name)
    for name, scale in (("law", codes.scale * (1 + change)), ("base", codes.scale)):
        written = load_file(tmp_path / name / "model.safetensors")[f"{path}.weight"]
        assert torch.equal(written, codes.steps * codes.grid.spread(scale, codes.codes.shape[1]))


def test_a_set_that_is_not_there(tuned: Path, tmp_path: Path) -> None:
    for format in ("gptq", "dense"):
        words = ["export", str(tuned), "--format", format, "--out", str(tmp_path / "out"), "--scales", "lore"]
        assert main(words) == 2
    assert not (tmp_path / "out").exists()


def test_experts_in_one_tensor_are_refused_by_name(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    directory = quantized(tmp_path / "base", tmp_path / "packed", select="attn")
    for format in ("compressed-tensors", "mlx", "gptq", "awq"):
        with pytest.raises(InputError, match=r"in model.layers.0.mlp.experts.\w+, which stays dense"):
            kanna.export_quantized(directory, tmp_path / "out", format)


def test_a_loader_that_fails_is_a_check_that_fails(
    packed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from kanna.methods.export.formats.gptq import Gptq

    def broken(*_: object) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr(Gptq, "reader", broken)
    words = ["export", str(packed()), "--format", "gptq", "--out", str(tmp_path / "out"), "--check"]
    assert main(words) == 3
    assert (
        "check FAILED: kanna's own reader of the format does not load it: RuntimeError"
        in capsys.readouterr().out
    )
