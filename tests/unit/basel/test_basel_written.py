"""What Basel wrote, in the hands of others: a new process, PEFT, an export."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import exported
import pytest
import torch
from safetensors.torch import load_file, save_file

import kanna
from kanna.methods.basel.config import BaselConfig

Base = Callable[[str], Path]
IDS = torch.arange(3, 15)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def written(
    request: pytest.FixtureRequest, bases: Base, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    config = BaselConfig(data=rows, keep=0.5, rows=18, epochs=(1, 1, 1), prune_events=1)
    kanna.basel(bases(request.param), out, config)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_a_new_process_loads_it(written: Path, tmp_path: Path) -> None:
    model, _ = kanna.load(written, dtype="float32")
    save_file({"logits": logits(model)}, tmp_path / "known.safetensors")
    code = (
        "import sys, torch, transformers, kanna\n"
        "from safetensors.torch import load_file\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "known = load_file(sys.argv[2])['logits']\n"
        "with torch.no_grad(): assert torch.equal(model(torch.arange(3, 15)[None]).logits, known)\n"
    )
    given = [str(written), str(tmp_path / "known.safetensors"), str(torch.get_num_threads())]
    ran = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_it_takes_lora(written: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, _ = kanna.load(written, dtype="float32")
    start = logits(model)
    targets = kanna.lora_targets(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.0))
    adam = torch.optim.SGD((p for p in tuned.parameters() if p.requires_grad), 0.5)
    for _ in range(2):
        adam.zero_grad()
        tuned(IDS, labels=IDS).loss.backward()
        adam.step()
    expected = logits(tuned.eval())
    assert not torch.equal(expected, start)
    tuned.save_pretrained(tmp_path / "adapter")
    fresh, _ = kanna.load(written, dtype="float32")
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")), expected)


def test_multiplied_out_it_computes_the_same(written: Path, tmp_path: Path) -> None:
    pair, _ = kanna.load(written, dtype="float32")
    merged, _ = kanna.load(exported.dense(written, tmp_path / "dense"), dtype="float32")
    mine, theirs = logits(pair), logits(merged)
    assert float((mine - theirs).abs().max()) <= 1e-4 * float(mine.abs().max())
    names = load_file(tmp_path / "dense" / "model.safetensors")
    assert not any(part in name for name in names for part in ("expand", "reduce"))
