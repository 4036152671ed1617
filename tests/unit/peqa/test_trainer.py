"""Loaded models in other trainers: nothing but scales changes, and what was learnt becomes a set."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import kanna
import process_state


class Letters(Dataset[dict[str, Tensor]]):
    """Eight rows of sixteen tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        ids = (torch.arange(16) * (number + 1)) % 30 + 1
        return {"input_ids": ids, "labels": ids.clone()}


def trained(base: Path, out: Path, steps: int, resume: bool = False) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    kanna.scales.trainable(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=True,
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    before = process_state.snapshot()
    try:
        Trainer(model=model, args=arguments, train_dataset=Letters()).train(resume_from_checkpoint=resume)
    finally:  # the trainer of others seeds the process
        process_state.restore(before)
    return model


def test_under_the_trainer_of_transformers(base: Path, tmp_path: Path) -> None:
    """In bfloat16, activations computed again, saved and resumed: only d moves, and in float32."""
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).state_dict()
    model = trained(base, tmp_path / "run", 4)
    after = model.state_dict()
    changed = {name for name in after if name.endswith("scale_change")}
    assert changed and before.keys() == after.keys() - changed
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(after[name].dtype == torch.float32 and after[name].abs().max() > 0 for name in changed)

    trained(base, tmp_path / "again", 2)
    resumed = trained(base, tmp_path / "again", 4, resume=True).state_dict()
    assert all(torch.equal(resumed[name], after[name]) for name in after)

    kanna.scales.save(model, "mine")
    loaded, _ = kanna.load(base, scales="mine", dtype="bfloat16")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_outputs_that_are_changed_in_place(base: Path, data: Path) -> None:
    """As some models do: what is kept of them would be spoilt, so inputs are kept; gradients are the same."""
    model, _ = kanna.load(base)
    ids = torch.arange(1, 13)[None]
    held = kanna.scales.trainable(model)
    model(ids, labels=ids).loss.backward()
    expected = {path: change.grad for path, change in held.items()}
    held = kanna.scales.trainable(model, keep_inputs=True)
    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, y: y.mul_(1.0))
    model(ids, labels=ids).loss.backward()
    for path, change in held.items():
        assert change.grad is not None and torch.allclose(change.grad, expected[path], rtol=1e-4, atol=1e-7)
    kanna.scales.trainable(model)
    with pytest.raises(RuntimeError, match="inplace"):
        model(ids, labels=ids).loss.backward()
    hook.remove()


@pytest.mark.parametrize("by", ["channel", "group"])
def test_a_loop_of_ones_own(by: str, base: Path) -> None:
    """Gradients are those of the same loss with d moved by hand."""
    model, _ = kanna.load(base)
    held = kanna.scales.trainable(model, by)
    ids = torch.arange(1, 13)[None]
    model(ids, labels=ids).loss.backward()
    path = "model.layers.1.mlp.up_proj"
    place = (3,) if by == "channel" else (3, 1)
    gradient = held[path].grad
    assert gradient is not None
    losses = []
    with torch.no_grad():
        for step in (1e-2, -1e-2):
            held[path][place] = step
            losses.append(float(model(ids, labels=ids).loss.double()))
    moved = (losses[0] - losses[1]) / 2e-2
    assert float(gradient[place]) == pytest.approx(moved, rel=0.05, abs=1e-5)
