"""How positions are turned is written where mlx-lm looks for it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from quantized_models import llama, quantized

from kanna.cli.main import main
from kanna.methods.export.formats.mlx import positions_apart

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("together", [{"rope_type": "default", "rope_theta": 500000.0}, LLAMA3])
def test_mlx_lm_finds_them(together: dict[str, Any], tmp_path: Path) -> None:
    """transformers writes them under one key, which mlx-lm does not read in Llama: it took 10,000."""
    model = llama(tmp_path / "base")
    config = json.loads((model / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 10000.0 and "rope_theta" not in config
    (model / "config.json").write_text(json.dumps(config | {"rope_parameters": together}))
    packed, out = quantized(model, tmp_path / "packed", 4, 32), tmp_path / "out"
    check = ["--check"] if find_spec("mlx_lm") else []
    assert main(["export", str(packed), "--format", "mlx", "--out", str(out), *check]) == 0
    said = json.loads((out / "config.json").read_text())
    assert said["rope_theta"] == 500000.0 and said["rope_parameters"] == together
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert said.get("rope_scaling") == (scaling if together is LLAMA3 else None)


def test_what_is_said_apart_stays() -> None:
    together = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5}}
    assert positions_apart(together) == {"rope_theta": 5.0, "partial_rotary_factor": 0.5}
    assert positions_apart({**together, "rope_theta": 7.0}) == {"partial_rotary_factor": 0.5}
    kinds = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 5.0}}
    assert positions_apart({"rope_parameters": kinds}) == {"rope_theta": 5.0}
    kinds = {**kinds, "sliding_attention": {"rope_theta": 4.0}}
    assert positions_apart({"rope_parameters": kinds}) == {}
    assert positions_apart({"rope_theta": 7.0}) == {} == positions_apart({"rope_parameters": None})
