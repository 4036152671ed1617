"""What a plan of a very large model takes: counts of work, since seconds depend on the machine."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import kanna
from kanna.checkpoint.reader import Checkpoint
from kanna.methods.merge import kinds
from kanna.models import skeleton

LAYERS, HIDDEN, INNER, TOKENS = 80, 8192, 28672, 128256
SHAPES = {
    "self_attn.q_proj.weight": [HIDDEN, HIDDEN],
    "self_attn.k_proj.weight": [1024, HIDDEN],
    "self_attn.v_proj.weight": [1024, HIDDEN],
    "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
    "mlp.gate_proj.weight": [INNER, HIDDEN],
    "mlp.up_proj.weight": [INNER, HIDDEN],
    "mlp.down_proj.weight": [HIDDEN, INNER],
    "input_layernorm.weight": [HIDDEN],
    "post_attention_layernorm.weight": [HIDDEN],
}


def sparse(directory: Path) -> Path:
    """Headers of 141 GB, in a file without a single block of data."""
    directory.mkdir()
    tensors = {"model.embed_tokens.weight": [TOKENS, HIDDEN]}
    for number in range(LAYERS):
        tensors |= {f"model.layers.{number}.{name}": shape for name, shape in SHAPES.items()}
    tensors |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [TOKENS, HIDDEN]}
    header, place = {}, 0
    for name, shape in tensors.items():
        end = place + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": TOKENS,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the costly parts of planning run."""
    found: Counter[str] = Counter()

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            found[name] += 1
            return original(*given, **named)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in ((Checkpoint, "part"), (kinds, "_kind"), (skeleton, "skeleton")):
        watch(owner, name)
    return found


def test_a_plan_reads_headers_alone(counts: Counter[str], tmp_path: Path) -> None:
    models = [sparse(tmp_path / name) for name in "abc"]
    listed = [{"model": str(path), "parameters": {"weight": [0.2, 0.8]}} for path in models[1:]]
    plan = kanna.merge_plan({"merge_method": "ties", "base_model": str(models[0]), "models": listed})
    assert plan.bytes_written == sum(tensor.spec.bytes for tensor in plan.tensors) > 141e9
    assert len(plan.groups()) == LAYERS
    assert not counts


def test_a_plan_of_slices_looks_at_each_layer_once(counts: Counter[str], tmp_path: Path) -> None:
    models = [sparse(tmp_path / name) for name in "ab"]
    taken = [(models[0], 0, 60), (models[1], 20, LAYERS)]
    slices = [{"sources": [{"model": str(path), "layer_range": [first, end]}]} for path, first, end in taken]
    plan = kanna.merge_plan({"merge_method": "passthrough", "slices": slices})
    assert plan.config["num_hidden_layers"] == 120
    assert counts["part"] == 0
    assert counts["skeleton"] <= 2 and counts["_kind"] <= LAYERS + 120
