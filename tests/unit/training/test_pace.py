"""Tokens a second: of steps alone, by a clock of our own, and in what a run says."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kanna.training.batches import mixed
from kanna.training.examples import Example
from kanna.training.loop import Course, Material, train
from kanna.training.optimiser import Group, Optimiser
from kanna.training.pace import Pace

STEPS, ROWS, LENGTH, SLEPT = 4, 2, 10, 0.05


def test_what_is_done_between_steps_does_not_count() -> None:
    ticks: Iterator[float] = iter([10.0, 12.0, 100.0, 101.0])
    pace = Pace(lambda: next(ticks))
    assert str(pace) == ""
    with pace.reading(2500):
        pass
    assert str(pace) == "1,250 tokens/s"
    with pace.reading(500):
        pass
    assert str(pace) == "1,000 tokens/s"


def test_a_run_tells_how_many_tokens_it_reads(tmp_path: Path) -> None:
    """All tokens, not the scored ones, and not the time of validations: steps here take 50 ms at least."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, pad_token_id=0, **sizes))

    def slow(module: nn.Module, _: object) -> None:
        time.sleep(SLEPT if module.training else 4 * SLEPT)

    model.register_forward_pre_hook(slow)
    task = [Example(tuple(range(1, LENGTH + 1)), (False,) * (LENGTH - 1) + (True,)) for _ in range(8)]
    material = Material(task, mixed([LENGTH] * 8, [], ROWS, 0.0, 0), validation=task[:2])
    said: list[str] = []
    began = time.perf_counter()
    train(
        model,
        Optimiser([Group(dict(model.named_parameters()), 1e-3)]),
        material,
        Course(STEPS, validate_every=1),
        tmp_path,
        progress=lambda stage, *_: said.append(stage),
    )
    seconds = time.perf_counter() - began - STEPS * 4 * SLEPT
    last = re.search(r"^train \| loss \d\.\d{3}, held out \d\.\d{3}, ([\d,]+) tokens/s$", said[-1])
    assert last is not None
    told = int(last[1].replace(",", ""))
    assert STEPS * ROWS * LENGTH / seconds - 1 <= told <= ROWS * LENGTH / SLEPT
