"""Checkpoints written before forms could hold forms (commit 7378eb4): they load, and are written alike.

`data/NAME` is a toy of two layers with low-rank, pivot and rows forms, and `data/NAME.logits.safetensors`
what that version computed with it.
"""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.declared import FORMAT_VERSION, forms_of, quantization_config
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import spec_of, write_json, write_tensors
from kanna.forms import Dense, Form

DATA = Path(__file__).with_name("data")
NAMES = ("llama", "gpt2")


def repacked(form: Form, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a form taken apart and packed again."""
    bias = stored.get(form.bias_suffix)
    given = {name: stored[name] for name in form.own_dtypes}
    for name, child in form.nested.items():
        inner = {s.removeprefix(f"{name}."): t for s, t in stored.items() if s.startswith(f"{name}.")}
        given[name] = inner["weight"] if isinstance(child, Dense) else repacked(child, inner)
    return form.pack(given, bias)


@pytest.mark.parametrize("name", NAMES)
def test_loads_bit_identically(name: str) -> None:
    history = lineage.verify(DATA / name)
    assert history is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(DATA / name)
    stored, state = Checkpoint.open(DATA / name), model.state_dict()
    for tensor in stored.tensors:
        assert torch.equal(state[tensor], stored.tensor(tensor))
    reference = safetensors.torch.load_file(DATA / f"{name}.logits.safetensors")
    with torch.no_grad():
        computed = model(reference["input"])[0]
    # Another processor sums in another order: the weights are equal to the bit, the logits to rounding.
    torch.testing.assert_close(computed, reference["logits"], rtol=0, atol=1e-5)
    loaded, _ = kanna.load(DATA / name)
    assert loaded.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", NAMES)
def test_written_again_it_has_the_same_bytes(name: str, tmp_path: Path) -> None:
    source = Checkpoint.open(DATA / name)
    forms = forms_of(source.config)
    tensors = dict(source.stream())
    for path, form in forms.items():
        stored = {
            n.removeprefix(f"{path}."): tensors.pop(n) for n in list(tensors) if n.startswith(f"{path}.")
        }
        tensors |= {f"{path}.{suffix}": tensor for suffix, tensor in repacked(form, stored).items()}
    write_tensors(tmp_path, [spec_of(n, t) for n, t in tensors.items()], tensors.items())
    write_json(tmp_path / "config.json", {**source.config, "quantization_config": quantization_config(forms)})
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (DATA / name / file).read_bytes()
    assert FORMAT_VERSION == 1
