"""How fast 4-bit codes decode on this CPU, beside the dense model that they stand for.

    python benchmarks/int4_decode.py
    python benchmarks/int4_decode.py --groups 32 64 128 channel --out int4.json

A Llama-shaped model with random weights (hidden 2048, 8 layers, feed-forward 5504, a small vocabulary, so
that `lm_head` does not hide the layers) stands in one process dense in bfloat16 and in float32, and in 4 bits
by the grid that just holds each group, computing in bfloat16. They take turns after warm-up, who begins
changes. Each round times some forward passes of 1 and of 16 tokens behind a prompt whose keys and values are
kept; figures are medians, ratios are paired by round, of seconds of the processor with one thread (other work
on the machine disturbs these less than seconds by the clock), by the clock with more. "layers" is the linear
layers of the blocks alone, on as many tokens.

Decoding one token is bound by reading weights, so the ideal is the ratio of bytes: those that the kernel
reads, codes with scales in its own layout, and the dense head. "share" is the measured ratio over it. At last
each model of 4 bits once computes a token with its weights multiplied out: the seconds, and how far the
kernel's logits are from these.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kanna.forms import Int, IntLinear, fast, install
from kanna.models.inventory import inventory
from kanna.quant.grid import Codes, between, rounded
from lowrank_inference import configuration, last_level_cache, processor, random_model, weight_bytes

DENSE = "dense bfloat16"


@dataclass(frozen=True)
class Row:
    """One timing of a model, beside the dense one in bfloat16.

    Args:
        tokens: At once.
        milliseconds: Of a pass, median. clock: The same by the clock.
        ratio: Speed over that of the dense one, median over rounds. spread: Between the quartiles of it.
        bytes_read: Of weights in a pass.
        byte_ratio: Of the dense one over it.
    """

    model: str
    phase: str
    tokens: int
    milliseconds: float
    clock: float
    ratio: float
    spread: float
    bytes_read: int
    byte_ratio: float

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * self.tokens / self.milliseconds

    @property
    def share(self) -> float:
        return self.ratio / self.byte_ratio


class Subject:
    """A model, with keys and values of a prompt.

    Args:
        paths: Of the linear layers in its blocks.
    """

    def __init__(self, name: str, model: Any, paths: Sequence[str], prompt: Tensor) -> None:
        self.name, self.model = name, model
        self.layers: list[Any] = [model.get_submodule(path) for path in paths]
        self._cache, self._length = DynamicCache(config=model.config), prompt.shape[1]
        for part in prompt.split(fast.MOST_TOKENS, 1):  # few at once: nothing is multiplied out
            self.model(part, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def logits(self, tokens: int) -> Tensor:
        """Of the last of some tokens behind the prompt."""
        ids = torch.arange(1, tokens + 1)[None]
        out = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache.crop(-tokens)
        found: Tensor = out.logits[0, -1]
        return found

    def decode(self, tokens: int) -> None:
        self.logits(tokens)

    def linears(self, tokens: int) -> None:
        for layer in self.layers:
            layer(torch.ones(tokens, layer.in_features, dtype=self.model.dtype))

    def bytes_read(self, phase: str) -> int:
        return sum(map(_read, self.layers)) + (weight_bytes([self.model.lm_head]) if phase == "decode" else 0)


def _read(layer: Any) -> int:
    """Of a product: of whole numbers, what their kernel reads."""
    if not isinstance(layer, IntLinear):
        return weight_bytes([layer])
    kernel = layer.kernel(torch.ones(1, layer.in_features, dtype=torch.bfloat16))
    if kernel is None:
        sys.exit(f"a layer of {layer.out_features} x {layer.in_features} has no kernel, or it is slower")
    return sum(tensor.numel() * tensor.element_size() for tensor in (kernel.codes, kernel.scales))


def whole(dense: Any, config: Any, group: int | None) -> Any:
    """The model with the linear layers of its blocks in 4 bits; what is left is that of the dense one."""
    with torch.device("meta"):
        model = type(dense)(config).to(torch.bfloat16)
    for matrix in inventory(model).matrices:
        form = Int(4, group)
        layer = form.build(*matrix.shape, dtype=torch.bfloat16)
        low, high = form.grid.grouped(dense.get_parameter(matrix.tensor).float()).aminmax(dim=-1)
        scale, zero = between(low.clamp(max=0), high.clamp(min=0), form.grid)
        codes: Codes = rounded(dense.get_parameter(matrix.tensor), scale, zero, form.grid)
        layer.load_state_dict({"weight": torch.zeros(1, dtype=torch.bfloat16), **codes.packed()})
        install(model, matrix.module, layer)
    shared = {name: value for name, value in dense.state_dict().items() if name in model.state_dict()}
    shared = {name: value for name, value in shared.items() if value.shape == model.state_dict()[name].shape}
    model.load_state_dict(shared, strict=False, assign=True)
    model.model.rotary_emb = dense.model.rotary_emb
    return model.eval()


def measured(subjects: Sequence[Subject], phase: str, tokens: int, rounds: int, steps: int) -> Iterator[Row]:
    """All models in turns, the dense one in bfloat16 first."""
    passes: list[Callable[[int], None]] = [getattr(one, phase) for one in subjects]
    taken: list[list[tuple[float, float]]] = [[] for _ in subjects]
    for turn in range(-1, rounds):
        for i in sorted(range(len(subjects)), key=lambda i: (i - turn) % len(subjects)):
            seconds = _seconds(passes[i], tokens, 2 if turn < 0 else steps)
            if turn >= 0:
                taken[i].append(seconds)
    most = subjects[0].bytes_read(phase)
    for one, both in zip(subjects, taken, strict=True):
        ratios = sorted(base / mine for (base, _), (mine, _) in zip(taken[0], both, strict=True))
        spread = ratios[(3 * len(ratios)) // 4] - ratios[len(ratios) // 4]
        times = (1e3 * median(seconds) for seconds in zip(*both, strict=True))
        read = one.bytes_read(phase)
        name = "layers" if phase == "linears" else "model"
        yield Row(one.name, name, tokens, *times, median(ratios), spread, read, most / read)


def _seconds(run: Callable[[int], None], tokens: int, steps: int) -> tuple[float, float]:
    """Of a pass: of the processor where one thread computes, and by the clock."""
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run(tokens)
    used, clock = time.process_time() - used, time.perf_counter() - began
    return (used if torch.get_num_threads() == 1 else clock) / steps, clock / steps


@contextmanager
def forced(way: str) -> Iterator[None]:
    before = os.environ.get(fast.FORCE)
    os.environ[fast.FORCE] = way
    try:
        yield
    finally:
        os.environ.pop(fast.FORCE)
        if before is not None:
            os.environ[fast.FORCE] = before


def multiplied_out(one: Subject) -> tuple[float, float]:
    """Seconds of a token, and the largest difference of the kernel's logits, of the largest logit."""
    kernel = one.logits(1).float()
    began = time.perf_counter()
    with forced("off"):
        out = one.logits(1).float()
    seconds = time.perf_counter() - began
    return seconds, float((kernel - out).abs().max() / out.abs().max())


def table(rows: Sequence[Row]) -> None:
    for row in rows:
        print(
            f"| {row.model} | {row.phase} | {row.tokens} | {row.milliseconds:,.1f} "
            f"| {row.clock:,.1f} "
            f"| {row.tokens_per_second:,.1f} | {row.ratio:.2f}x | {row.spread:.2f} "
            f"| {row.bytes_read / 1e6:,.0f} MB | {row.byte_ratio:.2f}x | {row.share:.0%} |",
            flush=True,
        )


def subjects_of(options: argparse.Namespace) -> list[Subject]:
    config = configuration(options)
    torch.manual_seed(0)
    dense = random_model(config, torch.bfloat16, None, "", 1)
    paths = [matrix.module for matrix in inventory(dense).matrices]
    prompt = torch.randint(options.vocabulary, (1, options.prompt))
    wide = random_model(config, torch.float32, None, "", 1)
    wide.load_state_dict(dense.state_dict())
    models = {DENSE: dense, "dense float32": wide}
    for group in options.groups:
        size = None if group == "channel" else int(group)
        models[f"4 bits, group {group}" if size else "4 bits, channel"] = whole(dense, config, size)
    return [Subject(name, model, paths, prompt) for name, model in models.items()]


def about(options: argparse.Namespace) -> dict[str, Any]:
    shape = ("hidden", "layers", "intermediate", "kv_heads", "vocabulary", "prompt", "threads")
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "last_level_cache": last_level_cache(),
        fast.FORCE: os.environ.get(fast.FORCE, ""),
        **{name: getattr(options, name) for name in shape},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", default=["64"], help="numbers of inputs, or channel")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16], help="at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--intermediate", type=int, default=5504)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as query heads")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="passes in a round")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts: dict[str, Any] = about(options)
    print(json.dumps(facts, indent=2))
    with torch.no_grad():
        subjects = subjects_of(options)
        head = (
            "| | of | tokens | ms | by the clock | tokens/s | speed | spread | weights read | ideal | share |"
        )
        print(f"\n{head}\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        rows: list[Row] = []
        for tokens in options.tokens:
            steps = options.steps if tokens == 1 else 1
            for phase in ("linears", "decode"):
                some = list(measured(subjects, phase, tokens, options.rounds, steps))
                table(some)
                rows += some
        print()
        slow = {one.name: multiplied_out(one) for one in subjects[2:]}
    for name, (seconds, off) in slow.items():
        print(
            f"{name}: a token takes {seconds:.1f} s multiplied out; logits are {off:.1e} of the largest off"
        )
    if options.out:
        written = [{**asdict(row), "speed": row.tokens_per_second, "share": row.share} for row in rows]
        options.out.write_text(json.dumps({**facts, "rows": written, "multiplied_out": slow}, indent=2))


if __name__ == "__main__":
    main()
