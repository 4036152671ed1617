"""What kanna does on a CUDA device: whether it computes the same there, and how much faster.

    python scripts/device_check.py --json device.json          # on a machine with a CUDA device
    python scripts/device_check.py --rehearse                  # this script itself, on the CPU, in seconds

Four stages, under `--minutes` in all; what would run over is left out and named.

    tests       the tests marked `cuda`, in a process of their own
    agreement   `kanna lowrank` on the model shipped with kanna, on the device and on the CPU: outputs of
                every block, ranks, perplexity and right answers
    speed       a Llama-shaped model with random weights: dense against low-rank factors, in turns, medians.
                linears: all linear layers of the blocks on one vector (in a CUDA graph, so that launching is
                not what is timed); decode: one token after a prompt; prefill: a whole prompt
    linalg      decompositions of single weights: device against CPU, and whether they agree

Every figure is a ratio. The exit code is 1 where a stage failed or a figure lies beyond its limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from kanna.forms import Dense, LowRank, install
from kanna.linalg.decomposition import decompose
from kanna.linalg.whitening import basis, factors
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.ranks import allocate
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.models.inventory import inventory
from kanna.tasks.data.rows import Row, read_rows

HOME = Path(__file__).resolve().parents[1]
DEMO = Path(str(files("kanna.demo")))
_MARK = "mark." + "cuda"  # in two, so that a file which only speaks of the mark is not one that has it
KEEPS = (0.8, 0.5)
# Largest relative difference of a block's output, and of perplexity, between device and CPU. The directions
# kept are well separated in float64, and factors are stored in bfloat16, whose rounding is 4e-3.
LIMITS = {"block outputs": 0.02, "perplexity": 0.01, "right answers": 0.02}
# Singular values, relative to the largest.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "whitened": {"keep": 0.6},
    "anchored": {"keep": 0.4},
    "pivot": {"keep": 0.6, "storage": "pivot"},
    "asvd": {"keep": 0.6, "method": "asvd", "allocation": "uniform"},
    "fwsvd": {"keep": 0.6, "method": "fwsvd", "allocation": "uniform"},
    "refined": {"keep": 0.6, "allocation": "uniform", "refine": 5},
}


@dataclass(frozen=True)
class Figure:
    """A ratio, and what it may be.

    Args:
        ratio: `what` says of what over what.
        low, high: Limits; None where nothing is demanded.
    """

    stage: str
    name: str
    what: str
    ratio: float
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        above = self.low is None or self.ratio >= self.low
        return above and (self.high is None or self.ratio <= self.high)


@dataclass
class Report:
    """All that was found; printed as it comes."""

    card: str
    deadline: float
    figures: list[Figure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def room(self, name: str, seconds: float) -> bool:
        """Whether there is time for something that takes about so long; where not, it is named."""
        if self.left() >= seconds:
            return True
        self.skipped.append(name)
        print(f"{name}: left out, {max(0.0, self.left()):.0f} s are left and it takes about {seconds:.0f} s")
        return False

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        note = "" if figure.passed else "   BEYOND ITS LIMIT"
        print(f"{figure.stage:9s} {figure.name:44s} {figure.ratio:10.4g}  {figure.what}{note}", flush=True)

    def fail(self, name: str, why: str) -> None:
        self.failed.append(f"{name}: {why}")
        print(f"{name}: FAILED: {why}", flush=True)

    def to_dict(self) -> dict[str, Any]:
        figures = [{**asdict(figure), "passed": figure.passed} for figure in self.figures]
        versions = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
        }
        return {
            "schema_version": 1,
            "card": self.card,
            **versions,
            "passed": self.passed,
            "figures": figures,
            "skipped": self.skipped,
            "failed": self.failed,
        }

    @property
    def passed(self) -> bool:
        return not self.failed and all(figure.passed for figure in self.figures)


@dataclass(frozen=True)
class Plan:
    """Sizes, and about how many seconds each part takes on a machine of our day."""

    device: torch.device
    rehearsed: bool = False
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    layers: int = 4
    vocabulary: int = 32_000
    prompt: int = 2048
    steps: int = 16
    rounds: int = 9
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    shapes: tuple[tuple[int, int], ...] = ((4096, 4096), (4096, 11008))
    cases: tuple[str, ...] = tuple(CASES)
    tokens: int = 4096
    seconds: dict[str, float] = field(
        default_factory=lambda: {"tests": 60, "agreement": 25, "speed": 30, "linalg": 40}
    )


def rehearsal() -> Plan:
    return Plan(
        device=torch.device("cpu"),
        rehearsed=True,
        hidden=64,
        intermediate=96,
        heads=4,
        layers=2,
        vocabulary=128,
        prompt=32,
        steps=2,
        rounds=3,
        dtypes=("bfloat16",),
        shapes=((48, 48), (48, 96)),
        cases=("refined",),
        tokens=512,
        seconds={"tests": 1, "agreement": 1, "speed": 1, "linalg": 1},
    )


def run_tests(plan: Plan, report: Report) -> None:
    """Those marked `cuda`; on a device each must run, none may be skipped."""
    marked = [
        str(path) for path in sorted((HOME / "tests").rglob("test_*.py")) if _MARK in path.read_text("utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-rs", *marked]
    ran = subprocess.run(
        command, cwd=HOME, capture_output=True, text=True, check=False, timeout=max(1.0, report.left())
    )
    last = (ran.stdout.strip().splitlines() or ["nothing was said"])[-1]
    print(f"tests     pytest -m cuda: {last}", flush=True)
    if ran.returncode:
        report.fail("tests", "\n".join(ran.stdout.strip().splitlines()[-30:]) + ran.stderr[-2000:])
    elif not plan.rehearsed and "SKIPPED" in ran.stdout:
        report.fail("tests", "some were skipped, though there is a CUDA device")


def agreement(plan: Plan, report: Report) -> None:
    """The same run on both devices, reloaded on both."""
    for name in plan.cases:
        if report.room(f"agreement {name}", plan.seconds["agreement"]):
            with tempfile.TemporaryDirectory() as folder:
                _agree(plan, report, name, Path(folder))


def _agree(plan: Plan, report: Report, name: str, folder: Path) -> None:
    taken, found = {}, {}
    for place in ("cpu", str(plan.device)) if not plan.rehearsed else ("cpu", "cpu:0"):
        config = parse_config({"context": 128, "tokens": plan.tokens, **CASES[name]})
        out = folder / place.replace(":", "-")
        start = time.perf_counter()
        done = lowrank(
            DEMO / "model",
            out,
            config,
            calibration=DEMO / "data" / "calibration.jsonl",
            cache=folder / f"{out.name}-cache",
            device=place,
        )
        taken[place] = time.perf_counter() - start
        if not done.passed:
            report.fail(f"agreement {name}", f"what was written on {place} is not what was computed")
        found[place] = (done.figures["ranks"], _Seen.of(out, torch.device(place)))
    (ranks, ours), (other_ranks, theirs) = found.values()
    same = sum(ranks[key] == other_ranks.get(key) for key in ranks) / max(1, len(ranks))
    differ = max(_apart(a, b) for a, b in zip(theirs.blocks, ours.blocks, strict=True))
    first, second = taken.values()

    def add(what: str, of: str, ratio: float, low: float | None = None, high: float | None = None) -> None:
        report.add(Figure("agreement", f"{name}: {what}", of, ratio, low, high))

    add("ranks that are equal", "of all", same)
    add("block outputs apart", "largest over blocks, of their size", differ, 0.0, LIMITS["block outputs"])
    bound = LIMITS["perplexity"]
    add("perplexity", "device over CPU", theirs.perplexity / ours.perplexity, 1 - bound, 1 + bound)
    if ours.right:
        bound = LIMITS["right answers"]
        add("right answers", "device over CPU", theirs.right / ours.right, 1 - bound, 1 + bound)
    add("seconds of the run", "CPU over device", first / second)


@dataclass(frozen=True)
class _Seen:
    """What a model computes: hidden states after each block, perplexity, share of right answers."""

    blocks: list[Tensor]
    perplexity: float
    right: float

    @classmethod
    def of(cls, directory: Path, device: torch.device) -> "_Seen":
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, device_map=None if device.type == "cpu" else device
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        texts = [row.text for row in read_rows(DEMO / "data" / "heldout.jsonl")][:16]
        hidden: list[list[Tensor]] = []
        losses = []
        with torch.no_grad():
            for text in texts:
                ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :128].to(device)
                out = model(ids, labels=ids, output_hidden_states=True)
                hidden.append([state[0].double().cpu() for state in out.hidden_states])
                losses.append(float(out.loss))
        blocks = [torch.cat(parts) for parts in zip(*hidden, strict=True)]
        questions = read_rows(DEMO / "data" / "questions.jsonl")
        right = [_answered(model, tokenizer, row, device) for row in questions]
        perplexity = float(torch.tensor(losses, dtype=torch.float64).mean().exp())
        return cls(blocks, perplexity, sum(right) / len(right))


def _answered(model: Any, tokenizer: Any, row: Row, device: torch.device) -> bool:
    """Whether the answer and the end token are the likeliest tokens at each of their places."""
    ids = [*tokenizer(row.prompt + row.answer)["input_ids"], tokenizer.eos_token_id]
    prompt = len(tokenizer(row.prompt)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]], device=device)).logits
    return logits[0, prompt - 1 :].argmax(-1).tolist() == ids[prompt:]


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def speed(plan: Plan, report: Report) -> None:
    for dtype in plan.dtypes:
        if report.room(f"speed {dtype}", plan.seconds["speed"]):
            with torch.no_grad():
                _speed(plan, report, getattr(torch, dtype))


def _speed(plan: Plan, report: Report, dtype: torch.dtype) -> None:
    models = {keep: random_model(plan, dtype, keep) for keep in (None, *KEEPS)}
    dense = models[None]
    for phase, make in PHASES.items():
        works = {keep: make(plan, model) for keep, model in models.items()}
        taken = in_turns(plan.device, works, plan.rounds)
        for keep in KEEPS:
            share = _bytes(models[keep].model.layers) / _bytes(dense.model.layers)
            name = f"{phase}, keep {keep:g} ({share:.2f} of bytes), {str(dtype).removeprefix('torch.')}"
            report.add(Figure("speed", name, "dense time over low-rank time", taken[None] / taken[keep]))


def random_model(plan: Plan, dtype: torch.dtype, keep: float | None) -> Any:
    """A Llama with random weights; with `keep`, every linear layer of its blocks as a pair of factors."""
    config = LlamaConfig(
        hidden_size=plan.hidden,
        num_hidden_layers=plan.layers,
        intermediate_size=plan.intermediate,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        vocab_size=plan.vocabulary,
        max_position_embeddings=2 * plan.prompt,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config).to(dtype)
    if keep is not None:
        matrices = inventory(model).matrices
        align = 64 if plan.hidden >= 1024 else 1
        dense = {matrix.name: Dense() for matrix in matrices}
        ranks = allocate(matrices, {}, LowRankConfig(keep=keep, allocation="uniform", align=align), dense)
        for matrix in matrices:
            if (rank := ranks[matrix.name]) is not None:
                install(model, matrix.module, LowRank(rank).build(*matrix.shape, dtype=dtype, device="meta"))
    rotary = type(model.model.rotary_emb)(config)  # holds computed buffers, which to_empty would lose
    model = model.to_empty(device=plan.device)
    model.model.rotary_emb = rotary.to(plan.device)
    with torch.no_grad():
        for parameter in model.parameters():
            matrix_like = parameter.dim() > 1
            parameter.normal_(std=parameter.shape[-1] ** -0.5) if matrix_like else parameter.fill_(1.0)
    return model.eval()


Work = Callable[[], object]


def linears(plan: Plan, model: Any) -> Work:
    """All linear layers of the blocks in turn, on one vector each."""
    layers = [module for module in model.model.layers.modules() if hasattr(module, "in_features")]
    inner = {id(child) for layer in layers for child in layer.children()}
    layers = [layer for layer in layers if id(layer) not in inner]
    vectors = {
        size: torch.randn(1, size, device=plan.device, dtype=model.dtype)
        for size in {layer.in_features for layer in layers}
    }

    def sweep() -> None:
        for layer in layers:
            layer(vectors[layer.in_features])

    return sweep if plan.device.type != "cuda" else _graph(sweep)


def _graph(work: Work) -> Work:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def decode(batch: int) -> Callable[[Plan, Any], Work]:
    """`steps` tokens after a short prompt, one at a time; the prompt is read before, and not timed."""

    def make(plan: Plan, model: Any) -> Work:
        prompt = torch.randint(plan.vocabulary, (batch, max(8, plan.prompt // 16)), device=plan.device)

        cache = DynamicCache(config=model.config)
        first = _next(model, prompt, cache)

        def tokens() -> None:
            token = first
            for _ in range(plan.steps):
                token = _next(model, token, cache)
            cache.crop(-plan.steps)

        return tokens

    return make


def prefill(plan: Plan, model: Any) -> Work:
    prompt = torch.randint(plan.vocabulary, (1, plan.prompt), device=plan.device)
    return lambda: _next(model, prompt, DynamicCache(config=model.config))


def _next(model: Any, ids: Tensor, cache: DynamicCache) -> Tensor:
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token: Tensor = out.logits[:, -1:].argmax(-1)
    return token


PHASES: dict[str, Callable[[Plan, Any], Work]] = {
    "linears": linears,
    "decode": decode(1),
    "decode of 32": decode(32),
    "prefill": prefill,
}


def in_turns(device: torch.device, works: dict[float | None, Work], rounds: int) -> dict[float | None, float]:
    """Median seconds of each; after two warm-ups, who goes first changes from round to round."""
    for work in works.values():
        work(), work()
    taken: dict[float | None, list[float]] = {name: [] for name in works}
    order = list(works)
    for _ in range(rounds):
        for name in order:
            taken[name].append(seconds(device, works[name]))
        order = order[1:] + order[:1]
    return {name: median(times) for name, times in taken.items()}


def seconds(device: torch.device, work: Work) -> float:
    """Of one call, until the device has finished."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def linalg(plan: Plan, report: Report) -> None:
    """Decompositions of one weight on both devices; the CPU, which is slow, once, the device three times."""
    for m, n in plan.shapes:
        for dtype in (torch.float64, torch.float32):
            name = f"{m} x {n}, {str(dtype).removeprefix('torch.')}"
            if report.room(f"linalg {name}", plan.seconds["linalg"] * n / plan.shapes[0][1]):
                _decompositions(plan, report, m, n, dtype, name)


def _decompositions(plan: Plan, report: Report, m: int, n: int, dtype: torch.dtype, name: str) -> None:
    weight, gram = problem(m, n, plan.device)
    rank = max(1, int(0.8 * m * n / (m + n)))

    def whitened(device: torch.device) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
        w, g = weight.to(device, dtype), gram.to(device, dtype)

        def work() -> tuple[Tensor, Tensor, Tensor]:
            parts = basis(w, g, dtype=dtype, max_rank=rank)
            expand, reduce = factors(w, parts, rank)
            return parts.energy, expand, reduce

        return work

    ours, here = _timed(plan.device, whitened(plan.device), 3)
    theirs, there = _timed(torch.device("cpu"), whitened(torch.device("cpu")), 1)
    report.add(Figure("linalg", f"basis and factors, {name}", "CPU time over device time", there / here))
    values, expected = (found[0].sqrt().cpu() for found in (ours, theirs))
    apart = float((values - expected).abs().max() / expected.max())
    report.add(Figure("linalg", f"singular values, {name}", "apart, of the largest", apart, 0, CLOSE[dtype]))
    pairs = ([factor.to(plan.device, torch.float64) for factor in found[1:]] for found in (ours, theirs))
    losses = [_loss(weight, gram, expand @ reduce) for expand, reduce in pairs]
    limit = 1e-6 if dtype == torch.float64 else 1e-2
    figure = Figure("linalg", f"loss, {name}", "device over CPU", losses[0] / losses[1], 1 - limit, 1 + limit)
    report.add(figure)
    if dtype == torch.float32:
        return  # `decompose` computes in float64 whatever it is given
    parts, here = _timed(plan.device, lambda: decompose(weight), 3)
    host = weight.cpu()
    other, there = _timed(torch.device("cpu"), lambda: decompose(host), 1)
    report.add(Figure("linalg", f"decompose, {name}", "CPU time over device time", there / here))
    apart = float((parts.values.cpu() - other.values).abs().max() / other.values.max())
    figure = Figure("linalg", f"its singular values, {name}", "apart, of the largest", apart, 0, CLOSE[dtype])
    report.add(figure)


def _timed(device: torch.device, work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What it gives, and the median of its seconds; a device is warmed up by one call more."""
    found: list[Any] = []
    if repeats > 1:
        work()
    taken = [seconds(device, lambda: found.append(work())) for _ in range(repeats)]
    return found[-1], median(taken)


def problem(m: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A weight (m, n), and statistics (n, n) of inputs whose directions fall off by e^-4; float64."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(m, n, dtype=torch.float64, device=device, generator=generator) / n**0.5
    inputs = torch.randn(n, 2 * n, dtype=torch.float64, device=device, generator=generator)
    inputs *= torch.exp(-torch.linspace(0, 4, n, dtype=torch.float64, device=device))[:, None]
    return weight, inputs @ inputs.T / (2 * n)


def _loss(weight: Tensor, gram: Tensor, approx: Tensor) -> float:
    residual = weight - approx
    return float((residual * (residual @ gram)).sum())


STAGES: dict[str, Callable[[Plan, Report], None]] = {
    "tests": run_tests,
    "agreement": agreement,
    "speed": speed,
    "linalg": linalg,
}


def run(plan: Plan, report: Report, wanted: list[str]) -> None:
    """Every stage; one that breaks is named, and the next goes on."""
    for name in wanted:
        if not report.room(name, plan.seconds[name]):
            continue
        try:
            STAGES[name](plan, report)
        except Exception as error:
            report.fail(name, f"{type(error).__name__}: {error}")
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="for everything; what runs over is left out"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="comma separated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU at a tiny shape")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    deadline = time.monotonic() + 60 * options.minutes
    if not options.rehearse and not torch.cuda.is_available():
        print("no CUDA device: nothing was checked (--rehearse tries this script on the CPU)")
        return 0
    plan = rehearsal() if options.rehearse else Plan(torch.device("cuda"))
    card = "CPU, rehearsed" if options.rehearse else torch.cuda.get_device_name()
    report = Report(card, deadline)
    torch.manual_seed(0)
    print(f"{card}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    run(plan, report, [name for name in STAGES if name in options.stages.split(",")])
    for title, lines in (("left out", report.skipped), ("failed", report.failed)):
        for line in lines:
            print(f"{title}: {line}")
    print(f"{card}: {'passed' if report.passed else 'NOT PASSED'}, {len(report.figures)} figures")
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
