"""Checkpoints whose forms hold other forms."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from exported import dense
from torch import nn
from toy import INPUT, NESTED, compress, logits, save_base

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.declared import forms_of, walk
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.forms import Dense, LowRank, Pivot, Rows

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module", params=sorted(NESTED))
def nested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, compressed directory); read only."""
    root = tmp_path_factory.mktemp(request.param)
    base = save_base(request.param, root / "base")
    return base, compress(base, root / "out", NESTED[request.param])


@pytest.fixture
def llama_nested(llama_base: Path, tmp_path: Path) -> Path:
    """A directory that a test may damage."""
    return compress(llama_base, tmp_path / "out", NESTED["llama"])


def load_plain(directory: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(directory)


_NEW_PROCESS = """
import sys
import kanna
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.arange(3, 15)[None])[0], sys.argv[2])
"""


def test_a_new_process_gives_identical_logits(nested: tuple[Path, Path], tmp_path: Path) -> None:
    _, directory = nested
    assert lineage.verify(directory) is not None
    command = [sys.executable, "-c", _NEW_PROCESS, str(directory), str(tmp_path / "logits")]
    subprocess.run(command, check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits"), logits(load_plain(directory)))


def test_save_pretrained_round_trip(nested: tuple[Path, Path], tmp_path: Path) -> None:
    _, directory = nested
    model = load_plain(directory)
    model.save_pretrained(tmp_path / "again")
    before, after = Checkpoint.open(directory), Checkpoint.open(tmp_path / "again")
    assert after.config == before.config
    assert {n: after.raw(n) for n in after.tensors} == {n: before.raw(n) for n in before.tensors}
    assert torch.equal(logits(load_plain(tmp_path / "again")), logits(model))


def test_dense_export(nested: tuple[Path, Path], tmp_path: Path) -> None:
    base, directory = nested
    source, exported = Checkpoint.open(base), Checkpoint.open(dense(directory, tmp_path / "dense"))
    assert {n: (s.shape, s.dtype) for n, s in source.tensors.items()} == {
        n: (s.shape, s.dtype) for n, s in exported.tensors.items()
    }
    expected = logits(load_plain(directory))
    torch.testing.assert_close(logits(load_plain(tmp_path / "dense")), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, logits(load_plain(base)), atol=1e-3)


def test_the_declared_forms_are_the_ones_given(nested: tuple[Path, Path]) -> None:
    declared = forms_of(Checkpoint.open(nested[1]).config)
    assert declared in NESTED.values()


def test_lora_targets_are_the_innermost_linears(nested: tuple[Path, Path]) -> None:
    model = load_plain(nested[1])
    targets = kanna.lora_targets(model)
    assert all(isinstance(model.get_submodule(target), nn.Linear) for target in targets)
    inside = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(tuple(forms(model)))
    ]
    assert targets == inside


def forms(model: nn.Module) -> dict:
    return model.config.quantization_config.forms


def test_walk_names_every_form() -> None:
    form = Rows((((0, 8, 8, 1), LowRank(4, expand=Pivot(2, mix=LowRank(1)))), ((8, 8, 8, 1), Dense())))
    keys = {name: inner.key for name, inner in walk(form)}
    assert keys == {
        "": "rows",
        "parts.0": "low_rank",
        "parts.0.reduce": "dense",
        "parts.0.expand": "pivot",
        "parts.0.expand.basis": "dense",
        "parts.0.expand.mix": "low_rank",
        "parts.0.expand.mix.reduce": "dense",
        "parts.0.expand.mix.expand": "dense",
        "parts.1": "dense",
    }


@pytest.mark.parametrize(
    ("suffix", "change", "text"),
    [
        (
            "reduce.mix.weight",
            None,
            r"no tensor 'model.layers.0.mlp.up_proj.reduce.mix.weight' of shape \[10, 6\]",
        ),
        ("expand.weight", None, r"no tensor 'model.layers.0.mlp.up_proj.expand.weight' of shape \[1\]"),
        (
            "expand.reduce.basis.weight",
            lambda t: t[:, 1:],
            r"up_proj.expand.reduce.basis.weight' .* \[3, 15\]",
        ),
        ("expand.reduce.order", lambda t: t.float(), r"up_proj.expand.reduce.order' .* is F32; .* needs I32"),
        ("expand.expand.weight", lambda t: t.int(), r"up_proj.expand.expand.weight' .* is I32"),
    ],
)
def test_what_is_wrong_inside_is_named(
    llama_nested: Path, suffix: str, change: Callable[[torch.Tensor], torch.Tensor] | None, text: str
) -> None:
    file = llama_nested / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensor = tensors.pop(f"{UP}.{suffix}")
    if change is not None:
        tensors[f"{UP}.{suffix}"] = change(tensor).contiguous()
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=text):
        load_plain(llama_nested)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            {"form": "low_rank", "rank": 8, "reduce": {"form": "pivot", "rank": 8}},
            f"{UP} in config.json: a pivot",
        ),
        (
            {"form": "low_rank", "rank": 8, "reduce": {"form": "nf4"}},
            f"{UP} in config.json: unknown form 'nf4'",
        ),
    ],
)
def test_what_is_declared_wrong_inside(
    llama_nested: Path, edit_config: Callable, form: dict, text: str
) -> None:
    edit_config(llama_nested, lambda config: config["quantization_config"]["forms"].update({UP: form}))
    with pytest.raises(InputError, match=text):
        load_plain(llama_nested)


def test_training_lowers_the_loss(llama_nested: Path) -> None:
    model = load_plain(llama_nested).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    losses = []
    for _ in range(4):
        loss = model(INPUT, labels=INPUT).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
