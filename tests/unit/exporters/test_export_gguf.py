"""GGUF: blocks read by hand and by the package, rows in llama.cpp's order, vocabulary, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from quantized_models import SIZES, llama, matrices, quantized
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import kanna
from kanna.errors import InputError
from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import gguf as layout

DEMO = Path(kanna.__file__).parent / "demo" / "model"


def by_hand(data: Any, five: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Blocks of a row as numbers, step by step: scale, fifth bits where there are, then two steps a byte."""
    size, middle = (22, 16) if five else (18, 8)
    values = []
    for block in np.asarray(data, np.uint8).reshape(-1, size):
        scale = float(block[:2].copy().view(np.float16)[0])
        high = int.from_bytes(block[2:6].tobytes(), "little") if five else 0
        pairs = block[size - 16 :]
        for place in range(32):
            low = int(pairs[place % 16]) >> (4 if place >= 16 else 0) & 15
            values.append(scale * (low + 16 * (high >> place & 1) - middle))
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [
        (2, False, "Q4_0"),
        (3, False, "Q4_0"),
        (4, True, "Q4_0"),
        (3, True, "Q4_0"),
        (4, False, "Q5_0"),
    ],
)
@pytest.mark.parametrize("group", [32, 64, None])
def test_blocks_hold_every_step(bits: int, symmetric: bool, kind: str, group: int | None) -> None:
    """Zero-points at both ends give the largest steps that there are."""
    grid, generator = Grid(bits, group, symmetric), torch.Generator().manual_seed(bits)
    codes = torch.randint(0, grid.top + 1, (4, 128), generator=generator, dtype=torch.uint8)
    groups = grid.groups(128)
    zero = torch.full((4, groups), grid.middle, dtype=torch.uint8)
    if not symmetric:
        zero[0], zero[1] = 0, grid.top
    codes[0, :2] = codes[1, :2] = torch.tensor([0, grid.top])
    scale = torch.rand(4, groups, generator=generator) - 0.5
    held = Codes(grid, codes, scale.half().float(), zero)
    assert layout.kind(grid) == kind
    written = layout.blocks(held)
    expected = held.weight.numpy()
    assert (by_hand(written, kind == "Q5_0").reshape(4, 128) == expected).all()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root, made = tmp_path_factory.mktemp("packed"), {}
    base = llama(root / "base", head_dim=32)

    def directory(bits: int, symmetric: bool = False) -> Path:
        key = (bits, symmetric)
        if key not in made:
            made[key] = quantized(base, root / f"{bits}-{symmetric}", bits, 32, symmetric=symmetric)
        return made[key]

    return directory


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, False), (4, False), (4, True)])
def test_a_file_holds_what_kanna_holds(
    bits: int, symmetric: bool, packed: Callable[..., Path], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    directory = packed(bits, symmetric)
    done = kanna.export_quantized(directory, tmp_path / "out", "gguf", check=True)
    assert done.check is not None and done.check.passed, done.check
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    names = {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    for path, codes in matrices(directory).items():
        parts = path.split(".")
        tensor = tensors[f"blk.{parts[2]}.{names[parts[-1]]}.weight"]
        exact = Codes(codes.grid, codes.codes, codes.scale.half().float(), codes.zero).weight.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(parts[-1])
        if heads is not None:
            m, n = exact.shape
            exact = exact.reshape(heads, 2, m // heads // 2, n).swapaxes(1, 2).reshape(m, n)
        assert (gguf.dequantize(tensor.data, tensor.tensor_type) == exact).all(), path
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_bfloat16_vocabulary_and_chat_template(tmp_path: Path) -> None:
    """The demo model: matrices that stay are bfloat16, and the file gives the same tokens."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    shutil.copytree(DEMO, tmp_path / "demo")
    settings = json.loads((tmp_path / "demo" / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "demo" / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template})
    )
    quantized(tmp_path / "demo", tmp_path / "packed")
    done = kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gguf", check=True)
    assert done.check is not None and done.check.passed and done.check.continued == (16, 16)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    (embedding,) = (tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert embedding.tensor_type == gguf.GGMLQuantizationType.BF16
    assert reader.fields["tokenizer.chat_template"].contents() == template
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    kinds, end = reader.fields["tokenizer.ggml.token_type"].contents(), 0
    assert kinds[end] == gguf.TokenType.CONTROL and kinds[1] == gguf.TokenType.NORMAL
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == end
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents()
    ours = transformers.AutoTokenizer.from_pretrained(DEMO)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = "The red box is in the drawer: 12 + 30 = 42?"
    assert (
        theirs(text, add_special_tokens=False)["input_ids"]
        == ours(text, add_special_tokens=False)["input_ids"]
    )


def test_embeddings_without_a_token_are_filled_up(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    base = llama(tmp_path / "base", vocab_size=400)
    _byte_pairs(base, pre_tokenizers.ByteLevel(add_prefix_space=False))
    quantized(base, tmp_path / "packed")
    kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gguf")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    tokens, kinds = (fields[f"tokenizer.ggml.{what}"].contents() for what in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 400
    assert kinds[256:] == [gguf.TokenType.UNUSED] * 144 and tokens[399] == "[PAD399]"


def _byte_pairs(directory: Path, split: Any) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def test_tokenizers_that_it_has_no_name_for_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    base = llama(tmp_path / "base", vocab_size=400)
    _byte_pairs(base, pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()]))
    quantized(base, tmp_path / "packed")
    with pytest.raises(InputError, match="tokenizer of packed cannot be written to gguf: it splits"):
        kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gguf")
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "packed")
    with pytest.raises(InputError, match=r"is a WordLevel without the file tokenizer.model"):
        kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


OTHERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any], str]] = {
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}, "this is Qwen2ForCausalLM"),
    "bias": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        {"attention_bias": True},
        "biases of attention",
    ),
    "positions": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        "positions of type linear",
    ),
    "window": (
        transformers.MistralForCausalLM,
        transformers.MistralConfig,
        {"sliding_window": 8},
        "a sliding window",
    ),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_models_that_it_would_compute_otherwise_are_refused(name: str, tmp_path: Path) -> None:
    model, config, changes, said = OTHERS[name]
    model(config(**(SIZES | changes))).save_pretrained(tmp_path / "base")
    quantized(tmp_path / "base", tmp_path / "packed")
    with pytest.raises(InputError, match=said):
        kanna.export_quantized(tmp_path / "packed", tmp_path / "out", "gguf")


@pytest.mark.parametrize(
    ("bits", "group", "said"), [(8, 32, "gguf holds 2, 3, 4 bits: .* has 8"), (4, 16, "in groups of 16")]
)
def test_numbers_that_its_blocks_do_not_hold(bits: int, group: int, said: str, tmp_path: Path) -> None:
    directory = quantized(llama(tmp_path / "base"), tmp_path / "packed", bits, group)
    with pytest.raises(InputError, match=said):
        kanna.export_quantized(directory, tmp_path / "out", "gguf")


def test_without_the_package_nothing_is_written(
    packed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match="gguf is not installed, which writes the file"):
        kanna.export_quantized(packed(4), tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
