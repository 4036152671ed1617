"""`kanna import`: files made here word by word, read as codes; and the way there and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import kanna
from kanna.checkpoint import lineage
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.runs.source import Source

GROUP = 32
LAYER = "model.layers.0.mlp.down_proj"


def base(directory: Path) -> Path:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).half().save_pretrained(directory)
    return directory


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of codes as words of 32 bits, by way of one long number a row."""
    rows = []
    for row in codes.tolist():
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([(whole >> (32 * place)) & 0xFFFFFFFF for place in range(count)])
    unsigned = torch.tensor(rows, dtype=torch.int64)
    return torch.where(unsigned >= 1 << 31, unsigned - (1 << 32), unsigned).to(torch.int32)


class Made:
    """Codes, zero-points and scales of every linear layer of a block, drawn at random."""

    def __init__(self, directory: Path, bits: int, least_zero: int = 0, symmetric: bool = False) -> None:
        self.bits, self.file = bits, base(directory) / "model.safetensors"
        tensors = load_file(self.file)
        self.directory, self.rest = directory, tensors
        self.codes: dict[str, torch.Tensor] = {}
        self.zeros: dict[str, torch.Tensor] = {}
        self.scales: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(bits)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            m, n = tensors.pop(name).shape
            path = name.removesuffix(".weight")
            self.codes[path] = torch.randint(0, 1 << bits, (m, n), generator=generator)
            zeros = torch.randint(least_zero, 1 << bits, (m, n // GROUP), generator=generator)
            self.zeros[path] = torch.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
            self.scales[path] = (torch.rand(m, n // GROUP, generator=generator) * 0.02).half()

    def save(self, packed: dict[str, torch.Tensor], settings: dict[str, Any]) -> Path:
        save_file({**self.rest, **packed}, self.file, {"format": "pt"})
        path = self.directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
        return self.directory

    def gptq(self, version: str | None, less: int, **more: Any) -> Path:
        packed = {}
        for path, codes in self.codes.items():
            packed[f"{path}.qweight"] = _down(codes, self.bits)
            packed[f"{path}.qzeros"] = words(self.zeros[path].T - less, self.bits)
            packed[f"{path}.scales"] = self.scales[path].T.contiguous()
            packed[f"{path}.g_idx"] = torch.arange(codes.shape[1], dtype=torch.int32) // GROUP
        settings = {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": GROUP,
            "sym": False,
            "desc_act": False,
        }
        return self.save(packed, {**settings, **({"checkpoint_format": version} if version else {}), **more})

    def compressed(self, symmetric: bool = False, **more: Any) -> Path:
        packed = {}
        for path, codes in self.codes.items():
            packed[f"{path}.weight_packed"] = words(codes, self.bits)
            packed[f"{path}.weight_scale"] = self.scales[path].clone()
            packed[f"{path}.weight_shape"] = torch.tensor(codes.shape)
            if not symmetric:
                packed[f"{path}.weight_zero_point"] = _down(self.zeros[path].T, self.bits)
        weights = {"num_bits": self.bits, "type": "int", "symmetric": symmetric, "strategy": "group",
                   "group_size": GROUP}  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                    "config_groups": {"group_0": group}}  # fmt: skip
        return self.save(packed, {**settings, **more})

    def check(self, imported: Path) -> None:
        """Every number that was made is there, and what else the model has."""
        source = Source.open(imported)
        assert set(source.declared) == set(self.codes)
        for path, layer in source.declared.items():
            module = source.module(path)
            found = layer.form.codes(module.state_dict(), layer.geometry.n)  # type: ignore[attr-defined]
            assert torch.equal(found.codes.long(), self.codes[path])
            assert torch.equal(found.zero.long(), self.zeros[path])
            assert torch.equal(found.scale, self.scales[path].float())
        written = load_file(imported / "model.safetensors")
        for name, value in self.rest.items():
            assert torch.equal(written[name], value), name


def _down(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, n) packed along n, as (words, m): one column an output."""
    return words(codes, bits).T.contiguous()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("version", "less"), [("gptq_v2", 0), ("gptq", 1), (None, 1)])
def test_gptq_of_both_versions(bits: int, version: str | None, less: int, tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", bits, least_zero=less)
    kanna.import_quantized(made.gptq(version, less), tmp_path / "ours")
    made.check(tmp_path / "ours")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors(bits: int, symmetric: bool, tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", bits, symmetric=symmetric)
    kanna.import_quantized(made.compressed(symmetric), tmp_path / "ours")
    made.check(tmp_path / "ours")
    assert all(
        layer.form.symmetric is symmetric for layer in Source.open(tmp_path / "ours").declared.values()
    )


@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
def test_the_way_back_gives_the_same_tensors(format: str, tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", 4)
    theirs = made.gptq("gptq_v2", 0) if format == "gptq" else made.compressed()
    kanna.import_quantized(theirs, tmp_path / "ours")
    kanna.export_quantized(tmp_path / "ours", tmp_path / "back", format)
    before, after = (load_file(path / "model.safetensors") for path in (theirs, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name


def test_where_it_comes_from_is_recorded_and_every_verb_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Made(tmp_path / "theirs", 4).gptq("gptq_v2", 0)
    before = lineage.file_digests(theirs)
    assert main(["import", str(theirs), "--out", str(tmp_path / "ours")]) == 0
    assert "7 layers of whole numbers from gptq" in capsys.readouterr().out
    recorded = lineage.verify(tmp_path / "ours")
    assert recorded is not None
    (step,) = recorded.steps
    assert (recorded.base.name, step.method, step.config) == ("theirs", "import", {"format": "gptq"})
    assert step.scores["imported_from"] == {"name": "theirs", "hash": recorded.base.hash}
    assert lineage.file_digests(theirs) == before
    assert main(["inspect", str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), "--format", "dense", "--out", str(tmp_path / "d")]) == 0
    assert main(["report", str(tmp_path / "ours"), "--out", str(tmp_path / "report.html")]) == 0
    assert main(["import", str(theirs), "--out", str(tmp_path / "ours")]) == 2


def test_another_order_of_inputs(tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", 4)
    theirs = made.gptq("gptq_v2", 0, desc_act=True)
    kanna.import_quantized(theirs, tmp_path / "trivial")  # as static groups leave it
    file = theirs / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{LAYER}.g_idx"] = tensors[f"{LAYER}.g_idx"].flip(0).contiguous()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"inputs of {LAYER} are in another order"):
        kanna.import_quantized(theirs, tmp_path / "ours")
    del tensors[f"{LAYER}.g_idx"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"inputs of {LAYER} are in another order"):
        kanna.import_quantized(theirs, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_zero_points_of_nought_in_the_first_version(tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", 4, least_zero=1)
    made.zeros[LAYER][3, 1] = 16  # stored as 15, as 0 less one would be
    with pytest.raises(InputError, match=rf"zero-points of {LAYER} are 0"):
        kanna.import_quantized(made.gptq("gptq", 1), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_said_to_be_symmetric_and_is_not(tmp_path: Path) -> None:
    theirs = Made(tmp_path / "theirs", 4).gptq("gptq_v2", 0, sym=True)
    with pytest.raises(InputError, match=r"are the middle, and those of .* are not"):
        kanna.import_quantized(theirs, tmp_path / "ours")


ODD: list[tuple[str, dict[str, Any], str]] = [
    ("gptq", {"bits": 8}, "qweight is torch.int32 .* would be"),
    ("gptq", {"bits": 5}, "says bits: 5"),
    ("gptq", {"group_size": 64}, "and would be torch.int32 .1, 8. by what config.json says"),
    ("gptq", {"checkpoint_format": "marlin"}, "says checkpoint_format: 'marlin'"),
    ("gptq", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "settings of their own"),
    ("gptq", {"quant_method": "hqq"}, "quant_method 'hqq'"),
    ("compressed", {"format": "int-quantized"}, "says format: 'int-quantized'"),
    ("compressed", {"config_groups": {}}, "has no config_groups"),
    ("compressed", {"kv_cache_scheme": {"num_bits": 8}}, "says kv_cache_scheme"),
]


@pytest.mark.parametrize(("format", "changes", "said"), ODD)
def test_what_is_not_taken_over(format: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = Made(tmp_path / "theirs", 4)
    theirs = made.gptq("gptq_v2", 0, **changes) if format == "gptq" else made.compressed(**changes)
    with pytest.raises(InputError, match=said):
        kanna.import_quantized(theirs, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_model_that_nobody_quantised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not quantised"):
        kanna.import_quantized(base(tmp_path / "base"), tmp_path / "ours")


def test_groups_of_layers_by_name(tmp_path: Path) -> None:
    """A name or a regular expression goes before the class."""
    made = Made(tmp_path / "theirs", 4)
    theirs = made.compressed()
    settings = json.loads((theirs / "config.json").read_text())
    declared = settings["quantization_config"]
    wrong = json.loads(json.dumps(declared["config_groups"]["group_0"]))
    wrong["weights"]["num_bits"] = 8
    right = {**declared["config_groups"]["group_0"], "targets": ["re:.*self_attn.*", "re:.*mlp.*"]}
    declared["config_groups"] = {"group_0": wrong, "group_1": right}
    (theirs / "config.json").write_text(json.dumps(settings))
    kanna.import_quantized(theirs, tmp_path / "ours")
    made.check(tmp_path / "ours")
