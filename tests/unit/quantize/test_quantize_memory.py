"""Peak memory without calibration: a few of the largest matrices, whatever the model is as a whole."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

# Of both models the same; the deep one has as many blocks as make it large beside one matrix.
SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1056,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOCKS = 8
PROGRAM = """
import ctypes, gc, sys
from pathlib import Path
import torch
import kanna

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

shallow, deep, out = sys.argv[1:]
kanna.quantize(shallow, f"{out}/shallow", kanna.QuantizeConfig(bits=2))  # whatever is set up once
for method in ("minmax", "mse"):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kanna.quantize(deep, f"{out}/{method}", kanna.QuantizeConfig(bits=2, method=method))
    print(status("VmHWM") - before)
"""


def model(directory: Path, blocks: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=blocks, **SIZES))
        made.save_pretrained(directory)
    del made
    gc.collect()
    return directory


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux says a peak anew only there"
)
def test_the_model_is_never_in_memory(tmp_path: Path) -> None:
    """The whole of it would be 58 MB beside that; what is written is read back, as packed as it is."""
    shallow, deep = model(tmp_path / "one", 1), model(tmp_path / "many", BLOCKS)
    arguments = [sys.executable, "-c", PROGRAM, str(shallow), str(deep), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    ran = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    dense = (deep / "model.safetensors").stat().st_size
    written = (tmp_path / "mse" / "model.safetensors").stat().st_size
    largest = 4 * SIZES["hidden_size"] * SIZES["intermediate_size"]
    assert 2 * written + 18 * largest < 0.7 * dense
    peaks = list(map(int, ran.stdout.splitlines()[-2:]))
    assert len(peaks) == 2 and max(peaks) < 2 * written + 18 * largest, peaks
