"""Blocks of several layers that share their weights: these are named and stay, the rest is replaced."""

from pathlib import Path

import tiny
import torch
import transformers
from safetensors.torch import load_file

import kanna
from kanna.forms import FormModule
from kanna.models.inventory import SHARED


def zamba() -> transformers.Zamba2ForCausalLM:
    config = transformers.Zamba2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        mamba_d_state=8,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=16,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        max_position_embeddings=64,
        num_mem_blocks=1,
        adapter_rank=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Zamba2ForCausalLM(config).eval()


def test_shared_weights_are_listed_once_and_left(tmp_path: Path) -> None:
    real = zamba()
    base = tiny.save(real, tmp_path / "base")
    found = kanna.inspect(base).inventory
    tensors = [matrix.tensor for matrix in found.matrices]
    shared = {matrix.tensor for matrix in found.refused}
    twice = [
        name for name, value in real.named_parameters() if "shared_transformer" in name and value.dim() == 2
    ]
    assert len(tensors) == len(set(tensors))
    assert {matrix.refused for matrix in found.refused} == {SHARED}
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= {tensor.split(".")[-2] for tensor in shared}
    assert shared <= set(twice)
    assert all("layers.1." in tensor for tensor in shared)
    result = tiny.compress(base, tmp_path / "out", None, tmp_path / "cache", keep=0.5, method="plain")
    assert result.passed
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in shared)
    small = transformers.Zamba2ForCausalLM.from_pretrained(tmp_path / "out").eval()
    replaced = {path: module for path, module in small.named_modules() if isinstance(module, FormModule)}
    assert replaced
    for path, module in replaced.items():
        layer = real.get_submodule(path)
        left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        rank = module.form.rank
        layer.weight.data = ((left[:, :rank] * values[:rank]) @ right[:rank]).float()
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, real(ids).logits, rtol=1e-3, atol=1e-3)
