"""Memory and time of a step of Basel, beside full fine-tuning and LoRA of the same model.

    python benchmarks/basel_cost.py                          a random Llama, a few minutes on one core
    python benchmarks/basel_cost.py --model DIR --rows 8     a model of your own, on random rows

Every method runs in a process of its own, through kanna's trainer, on the same rows in the same steps, all in
float32 with AdamW: full fine-tuning trains every parameter, LoRA (of PEFT) factors beside every matrix, and
Basel is `kanna.basel` as it is. Its events are few here, so that there are steps to look at between them.

Measured are the median processor seconds of a step (those of the clock where nothing else runs, and where
something does, disturbed less), the first of each stage and those with a validation aside, and the most
resident memory while these steps ran, beyond what the process had when everything was imported; what was
freed before is given back first (the C library would keep it, and use it again). The
last column is computed: weights held (bases or matrices, and all the rest) and, of what is trained, the
gradient and the two averages. Activations are not in it.

All bases of a matrix together are 1.25 to 2 times its size. So Basel begins above: where it falls below the
full weights, and below full fine-tuning, is what the lines on its events say.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from torch import nn

import kanna
from kanna.methods.basel.plan import Plan
from kanna.methods.basel.results import RESULT
from kanna.training.loop import Course, Material, train
from kanna.training.optimiser import Group, Optimiser

METHODS = ("full", "lora", "basel")
EVENTS = 6
START, PART_2 = "Basel, part 1 at the start", "Basel, part 2"
_NUMBER = 4  # bytes of a float32
_SAMPLED = 0.005  # seconds between two looks at the memory


def give_back() -> None:
    """What was freed and the C library keeps, so that the memory of a stage is what it needs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Stage:
    """Steps of one kind.

    Args:
        name: What was trained.
        seconds: Of a step, the median.
        peak: Most bytes resident meanwhile, beyond the imports.
        computed: Bytes of weights, gradients and averages.
        bases: Parameters of all bases against those of the matrices; of Basel's part 1 alone.
    """

    name: str
    seconds: float
    peak: int
    computed: int
    bases: float | None = None


class Memory:
    """Most bytes resident since it was last asked, looked at all the time by a thread."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        give_back()
        self.before, self.peak, self.done = self.process.memory_info().rss, 0, threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self.done.set()
            thread.join()

    def _look(self) -> None:
        while not self.done.wait(_SAMPLED):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def taken(self) -> int:
        """Beyond what there was before; it begins anew."""
        most, self.peak = self.peak - self.before, 0
        return most


class Watch:
    """Takes time and memory of steps, by stage; a method calls it behind each step."""

    def __init__(self, memory: Memory, every: Mapping[str, int]) -> None:
        self.memory, self.every = memory, every
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}
        self._last: tuple[str, float, bool] = ("", 0.0, False)

    def __call__(self, stage: str, part: str, done: int) -> None:
        """Args: stage, which part of training it is in, steps of that done."""
        now = time.process_time()
        before, began, looked = self._last
        most = self.memory.taken()
        if before == stage:  # else this step was the first of its stage, or had the event of the one before
            self.peaks[stage] = max(self.peaks.get(stage, 0), most)
            if not looked:
                self.seconds.setdefault(stage, []).append(now - began)
        if before != stage:
            give_back()
        self._last = stage, now, done % self.every[part] == 0


def _training_bytes(held: int, trained: int) -> int:
    """Weights once, and of what is trained its gradient and two averages."""
    return _NUMBER * (held + 3 * trained)


def by_basel(model: Path, rows: Path, options: argparse.Namespace, out: Path) -> list[Stage]:
    """`kanna.basel`, watched."""
    memory, plans = Memory(), []
    config = configuration(rows, options)
    every = {"1": options.steps, "2": options.steps // 2}  # an eighth of each part
    watch = Watch(memory, every)

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("part 1"):
            schedule = plans[0].schedule
            behind = sum(schedule.event_after(step) is not None for step in range(done))
            watch(f"event {behind}", "1", done)
        elif stage.startswith("part 2"):
            watch(PART_2, "2", done)

    with memory.watched():
        kanna.basel(model, out, config, announce=plans.append, progress=progress)
    return list(_stages(plans[0], watch, json.loads((out / RESULT).read_text())))


def _stages(plan: Plan, watch: Watch, found: Mapping[str, Any]) -> Iterator[Stage]:
    rest = plan.inventory.parameters - plan.parameters
    sizes = [plan.sizes[matrix.name] for matrix in plan.selected]
    counts = [[min(size.m, size.n) for size in sizes], *(event["bases"] for event in found["events"])]
    for number, bases in enumerate(counts):
        held = [kept * (size.m + size.n) for kept, size in zip(bases, sizes, strict=True)]
        learnt = sum(bases) + sum(size.extra * (size.m + size.n) for size in sizes)
        key, name = f"event {number}", START if not number else f"Basel, part 1 after event {number}"
        computed = _training_bytes(rest + sum(held) + learnt, learnt)
        share = sum(held) / plan.parameters
        yield Stage(name, median(watch.seconds[key]), watch.peaks[key], computed, share)
    factors = round(found["keep_selected"] * plan.parameters)
    computed = _training_bytes(rest + factors, factors)
    yield Stage(PART_2, median(watch.seconds[PART_2]), watch.peaks[PART_2], computed)


def by_the_trainer(method: str, model: Path, rows: Path, options: argparse.Namespace, out: Path) -> Stage:
    """Full fine-tuning, or LoRA, with the trainer that Basel uses."""
    plan = kanna.basel(model, None, configuration(rows, options), dry_run=True).plan
    if method == "lora":
        from peft import LoraConfig, inject_adapter_in_model
    memory = Memory()
    loaded, _ = kanna.load(model, dtype="float32")
    if method == "lora":
        last = {matrix.module.rpartition(".")[2] for matrix in plan.selected}
        adapters = LoraConfig(r=options.lora_rank, target_modules=sorted(last), lora_dropout=0.0)
        loaded = inject_adapter_in_model(adapters, loaded)
    trained = {n: p for n, p in loaded.named_parameters() if method == "full" or "lora_" in n}
    steps, name = 2 * options.steps, names(options)[method]
    course = Course(steps, save_seconds=1e9)
    watch = Watch(memory, {"": steps})
    material = Material(plan.data.train.all, plan.batches)
    with memory.watched():
        optimiser = Optimiser([Group(trained, 1e-4)])
        train(loaded, optimiser, material, course, out, None, lambda _, done, __: watch(name, "", done))
    held = _count(loaded.parameters()) + _count(loaded.buffers())
    computed = _training_bytes(held, _count(trained.values()))
    return Stage(name, median(watch.seconds[name]), watch.peaks[name], computed)


def _count(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def names(options: argparse.Namespace) -> dict[str, str]:
    return {"full": "full fine-tuning", "lora": f"LoRA, rank {options.lora_rank}"}


def configuration(rows: Path, options: argparse.Namespace) -> kanna.BaselConfig:
    """An epoch is twice --steps: as many of part 1 at the start, then --steps behind every event."""
    return kanna.BaselConfig(
        data=rows / "train.jsonl",
        validation=rows / "held.jsonl",
        keep=options.keep,
        rows=options.rows,
        epochs=(1, EVENTS // 2, 2),
        prune_events=EVENTS,
    )


def write_model(directory: Path, options: argparse.Namespace) -> None:
    """A random Llama, with a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(options.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", model_max_length=2048)
    fast.save_pretrained(directory)
    config = LlamaConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        intermediate_size=options.intermediate,
        num_attention_heads=max(1, options.hidden // 64),
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)


def write_rows(directory: Path, options: argparse.Namespace) -> None:
    """Random words, of which the last ones are the answer; an epoch is twice --steps."""
    draw = random.Random(0)

    def row() -> str:
        words = [f"w{draw.randrange(1, options.vocabulary)}" for _ in range(options.words)]
        half = options.words // 2
        return json.dumps({"prompt": " ".join(words[:half]), "answer": " " + " ".join(words[half:])}) + "\n"

    (directory / "train.jsonl").write_text("".join(row() for _ in range(2 * options.steps * options.rows)))
    (directory / "held.jsonl").write_text("".join(row() for _ in range(options.rows)))


def measure(options: argparse.Namespace) -> list[Stage]:
    """Every method in a process of its own."""
    found: list[Stage] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        model = options.model or directory / "model"
        if options.model is None:
            write_model(model, options)
        write_rows(directory, options)
        for method in METHODS:
            print(f"{method} ...", file=sys.stderr, flush=True)
            here = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
            command = [*here, "--one", method, "--model", str(model), "--scratch", folder]
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found += [Stage(**stage) for stage in json.loads(ran.stdout.splitlines()[-1])]
    return found


def one(method: str, options: argparse.Namespace) -> list[Stage]:
    torch.set_num_threads(options.threads)
    nn.Linear(8, 8)(torch.ones(1, 8)).sum().backward()  # threads and libraries are there before memory counts
    rows, out = options.scratch, options.scratch / f"out-{method}"
    if method == "basel":
        return by_basel(options.model, rows, options, out)
    return [by_the_trainer(method, options.model, rows, options, out)]


def table(stages: Sequence[Stage]) -> Iterator[str]:
    """All figures, and in brackets their ratio to full fine-tuning."""
    full = stages[0]
    yield "| | bases / matrices | step | peak memory | weights, gradients, averages (computed) |"
    yield "|---|---:|---:|---:|---:|"
    for one in stages:
        bases = "" if one.bases is None else f"{one.bases:.2f}"
        yield (
            f"| {one.name} | {bases} | {one.seconds:.3g} s ({one.seconds / full.seconds:.2f}x) | "
            f"{one.peak / 1e6:,.0f} MB ({one.peak / full.peak:.2f}x) | "
            f"{one.computed / 1e6:,.0f} MB ({one.computed / full.computed:.2f}x) |"
        )


def crossings(stages: Sequence[Stage]) -> Iterator[str]:
    """Where Basel's part 1 falls below the dense weights, and below full fine-tuning."""
    full, part_1 = stages[0], [stage for stage in stages if stage.bases is not None]
    below = {
        "weights of the matrices themselves": [(s.bases or 0) < 1 for s in part_1],
        "seconds of a step of full fine-tuning": [s.seconds < full.seconds for s in part_1],
        "peak memory of full fine-tuning": [s.peak < full.peak for s in part_1],
    }
    for what, is_below in below.items():
        first = next((n for n in range(len(part_1)) if all(is_below[n:])), None)
        where = "never" if first is None else "from the start" if not first else f"from event {first} on"
        bases = "" if first is None else f" (bases {part_1[first].bases:.2f} of the matrices)"
        yield f"below the {what}: {where}{bases}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a directory; by default a random Llama")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--words", type=int, default=64, help="of a row")
    parser.add_argument("--steps", type=int, default=6, help="between events; of LoRA twice as many")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.one:
        print(json.dumps([asdict(stage) for stage in one(options.one, options)]))
        return
    stages = measure(options)
    if options.out:
        options.out.write_text(json.dumps([asdict(stage) for stage in stages], indent=2) + "\n")
    print(f"{options.threads} threads, {options.rows} rows of {options.words} words a step, float32")
    for line in (*table(stages), "", *crossings(stages)):
        print(line)


if __name__ == "__main__":
    main()
