"""Low rank of models of growing size: what each stage took beside what was foretold.

    python benchmarks/scale.py --text calibration.jsonl --tokenizer DIR --journal scale.jsonl

Random Llamas are made on the spot (hidden 1,024 and 2,048, depth 6, 12 and 24, a vocabulary of 32,000,
bfloat16) and compressed at keep 0.8 by the default method on 8,192 tokens, each in a process of its own. Told
are, of every stage, peak memory and seconds, measured and foretold in columns of their own, files of work,
and which share of the rate of float32 products the run reached. Peak memory over depth shows
whether it grows with a block or with the model.

A finished run is a line of --journal and is not done again; after --minutes no further one is begun. --full
adds a shape of 3 billion parameters, and one block of the 7B and 70B shapes. --model DIR does your own model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_VOCABULARY = 32_000


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    hidden: int
    inner: int
    depth: int
    heads: int
    key_heads: int

    @property
    def name(self) -> str:
        return f"{self.hidden}x{self.depth}"


def shape(hidden: int, depth: int) -> Shape:
    return Shape(hidden, hidden * 11 // 4, depth, hidden // 64, hidden // 256)


SHAPES = [shape(1024, 6), shape(1024, 12), shape(1024, 24), shape(2048, 6), shape(2048, 12), shape(2048, 24)]
FULL = [Shape(2560, 6912, 36, 40, 40), Shape(4096, 11008, 1, 32, 32), Shape(8192, 28672, 1, 64, 8)]


def make(wanted: Shape, directory: Path, tokenizer: Path) -> None:
    """A random model on disk, one tensor in memory at a time; its tokenizer is copied."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=wanted.hidden, intermediate_size=wanted.inner, num_hidden_layers=wanted.depth,
        num_attention_heads=wanted.heads, num_key_value_heads=wanted.key_heads, vocab_size=_VOCABULARY,
        max_position_embeddings=2048, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    directory.mkdir(parents=True)
    with torch.device("meta"):
        state = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    blocks: dict[str, dict[str, Any]] = {}
    for name, size in state.items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        value = torch.ones(size) if len(size) == 1 else 0.02 * torch.randn(size, generator=generator)
        blocks.setdefault(part, {})[name] = value.bfloat16()
        last = name == [other for other in state if _part(other) == part][-1]
        if last:
            file = f"model-{part}.safetensors"
            save_file(blocks.pop(part), directory / file, metadata={"format": "pt"})
            files |= {other: file for other in state if _part(other) == part}
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(directory)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, directory)


def _part(name: str) -> str:
    return name.split(".")[2] if name.startswith("model.layers.") else "rest"


def child(model: Path, room: Path, text: Path, tokens: int, keep: float) -> None:
    """One run; prints a line of JSON."""
    import torch

    from kanna.measure.rates import measured_rates
    from kanna.methods.lowrank.config import LowRankConfig
    from kanna.methods.lowrank.run import lowrank

    stages: dict[str, dict[str, float]] = {}
    at: list[Any] = ["start", time.perf_counter()]
    work = [0]
    plans: list[Any] = []

    def progress(stage: str, done: int, total: int) -> None:
        work[0] = max(work[0], _bytes(room))
        if stage == at[0]:
            return
        now = time.perf_counter()
        held = stages.setdefault(at[0], {"seconds": 0.0, "memory": 0.0})
        held["seconds"] += now - at[1]
        held["memory"] = max(held["memory"], _high_water())
        Path("/proc/self/clear_refs").write_text("5")
        at[:] = [stage, now]

    rates = measured_rates(room, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    config = LowRankConfig(keep=keep, tokens=tokens)
    result = lowrank(
        model, room / "out", config, calibration=text, cache=room / "cache", announce=plans.append,
        progress=progress,
    )  # fmt: skip
    progress("end", 0, 0)
    plan = plans[0]
    foretold = {
        name: {"seconds": stage.seconds(rates), "memory": stage.memory} for name, stage in plan.stages.items()
    }
    operations = sum(stage.products + stage.precise for stage in plan.stages.values())
    print(
        json.dumps(
            {
                "model_bytes": sum(f.stat().st_size for f in model.glob("*.safetensors")),
                "parameters": plan.inventory.parameters,
                "seconds": time.perf_counter() - began,
                "stages": stages,
                "foretold": foretold,
                "work": work[0],
                "work_foretold": plan.work_bytes,
                "streams": plan.streams,
                "left_in_cache": _bytes(room / "cache"),
                "operations": operations,
                "rate": rates.product,
                "passed": result.sound,
                "threads": torch.get_num_threads(),
            }
        )
    )


def _high_water() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _bytes(room: Path) -> int:
    """Files of work and of the cache; the output itself is none."""
    total = 0
    for path in room.rglob("*"):
        if (
            path.is_file()
            and not path.is_relative_to(room / "out")
            and ".partial" not in str(path.parent.name)
        ):
            try:
                total += path.stat().st_size
            except OSError:
                continue
    return total


def run(model: Path, room: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A run in a process of its own."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    command = [sys.executable, __file__, "--child", str(model), "--room", str(room), "--text", arguments.text]
    command += ["--tokens", str(arguments.tokens), "--keep", str(arguments.keep)]
    command += ["--tokenizer", str(arguments.tokenizer)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(room)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(name: str, row: dict[str, Any]) -> None:
    print(f"\n{name}: {row['parameters'] / 1e6:,.0f} M parameters, {row['model_bytes'] / 1e9:.2f} GB, "
          f"{row['threads']} threads")  # fmt: skip
    print(f"{'stage':10}{'GB':>8}{'foretold':>10}{'s':>10}{'foretold':>10}")
    for stage, held in row["stages"].items():
        told = row["foretold"].get(stage)
        memory = f"{told['memory'] / 1e9:10.2f}" if told else " " * 10
        seconds = f"{told['seconds']:10.1f}" if told else ""
        print(f"{stage:10}{held['memory'] / 1e9:8.2f}{memory}{held['seconds']:10.1f}{seconds}")
    share = row["operations"] / row["seconds"] / row["rate"]
    print(
        f"files of work {row['work'] / 1e9:.2f} GB (foretold {row['work_foretold'] / 1e9:.2f}, of which "
        f"hidden states {row['streams'] / 1e9:.2f}), left in the cache {row['left_in_cache'] / 1e9:.2f} GB; "
        f"{row['seconds']:.0f} s, {100 * share:.0f} % of the rate of float32 products"
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="of at most 32,000 entries")
    parser.add_argument("--journal", type=Path, default=Path("scale.jsonl"))
    parser.add_argument("--room", type=Path, default=Path(tempfile.gettempdir()) / "kanna-scale")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--shapes", nargs="*", help="such as 1024x6; all by default")
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.child:
        child(arguments.child, arguments.room, Path(arguments.text), arguments.tokens, arguments.keep)
        return
    began = time.monotonic()
    known: dict[str, Any] = {}
    if arguments.journal.is_file():
        known = {row["name"]: row for row in map(json.loads, arguments.journal.read_text().splitlines())}
    shapes = SHAPES + (FULL if arguments.full else [])
    shapes = [each for each in shapes if not arguments.shapes or each.name in arguments.shapes]
    how = f"{arguments.tokens} tokens, keep {arguments.keep}"
    jobs: list[tuple[str, Shape | Path]] = [(f"{path}, {how}", path) for path in arguments.model]
    jobs += [] if arguments.model else [(f"{each.name}, {how}", each) for each in shapes]
    for name, wanted in jobs:
        if name not in known and time.monotonic() - began < 60 * arguments.minutes:
            model = wanted if isinstance(wanted, Path) else arguments.room / "model"
            if isinstance(wanted, Shape):
                shutil.rmtree(model, ignore_errors=True)
                make(wanted, model, arguments.tokenizer)
            known[name] = {"name": name, **run(model, arguments.room / "run", arguments)}
            if isinstance(wanted, Shape):
                shutil.rmtree(model)
            with arguments.journal.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        if name in known:
            show(name, known[name])


if __name__ == "__main__":
    main()
