"""How much faster low-rank factors run than the dense weights they replace, on this CPU.

    python benchmarks/lowrank_inference.py --out inference.json
    python benchmarks/lowrank_inference.py --peak-memory --out memory.json

A Llama-shaped model with random weights (hidden 2048, 8 layers, feed-forward 5504, untied embeddings of a
small vocabulary, so that `lm_head` does not hide the layers) is built dense and in kanna's forms. Dense and
compressed model are timed in turns, in one process, in one dtype, both through the same eager PyTorch; times
are medians. Measured are

    linears     all linear layers of the blocks in turn, on one vector each: decode without the rest
    decode      the whole model, one token after a prompt, with its key-value cache
    prefill     the whole model, a prompt at once

beside what the numbers allow: linears and decode are bound by reading weights, so the ideal is the ratio of
bytes; prefill is bound by arithmetic, so the ideal is the ratio of multiplications in linear layers. "share"
is measured speed-up over ideal. Nothing is gained by the cache: the sweep through the weights is longer than
the last-level cache, and a row where it is not says so.

One thread by default: a product of this size takes half a millisecond, and on a machine shared with others a
second thread can wait longer than that at every barrier.

`--peak-memory` instead writes that model, a tokenizer and random text into a temporary directory, runs
`kanna lowrank` on it in a process of its own for each method, and prints its peak beside the model's size.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kanna.forms import Dense, LowRank, Pivot, install
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.ranks import allocate
from kanna.models.inventory import inventory

CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class Row:
    """One timing of a compressed model against the dense one.

    Args:
        keep: Asked for. keep_achieved: of the numbers in linear layers, ranks being multiples of `--align`.
        working_set: Bytes of weights that one sweep of the compressed model reads.
        dense_ms, low_ms: Median time of one sweep (linears), token (decode) or prompt (prefill).
        ideal: Ratio of bytes, or of multiplications for prefill.
        spread: Quartile distance of the speed-ups of single rounds.
        in_cache: The compressed weights fit into the last-level cache, so the speed-up is not memory's alone.
    """

    keep: float
    storage: str
    phase: str
    keep_achieved: float
    working_set: int
    dense_ms: float
    low_ms: float
    ideal: float
    spread: float
    in_cache: bool

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.low_ms

    @property
    def share(self) -> float:
        return self.speedup / self.ideal


def configuration(options: argparse.Namespace) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        intermediate_size=options.intermediate,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=options.kv_heads or options.hidden // 128,
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        bos_token_id=0,
        eos_token_id=0,
    )


def random_model(
    config: LlamaConfig, dtype: torch.dtype, keep: float | None, storage: str, align: int
) -> Any:
    """A model with random weights; with `keep`, every linear layer of its blocks in a form of kanna."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    if keep is not None:
        compress(model, keep, storage, align)
    rotary = type(model.model.rotary_emb)(config)  # holds computed buffers, which to_empty would lose
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = rotary
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5
            parameter.normal_(std=scale) if parameter.dim() > 1 else parameter.fill_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith(".order"):
                buffer.copy_(torch.randperm(len(buffer)))
    return model.eval()


def compress(model: nn.Module, keep: float, storage: Any, align: int) -> None:
    """Put forms of the ranks that `kanna lowrank` would choose in the place of the linear layers."""
    matrices = inventory(model).matrices
    config = LowRankConfig(keep=keep, allocation="uniform", storage=storage, align=align)
    ranks = allocate(matrices, {}, config, {matrix.name: Dense() for matrix in matrices})
    for matrix in matrices:
        rank = ranks[matrix.name]
        if rank is not None:
            form = LowRank(rank) if storage == "pair" else Pivot(rank)
            dtype = model.get_parameter(matrix.tensor).dtype
            install(model, matrix.module, form.build(*matrix.shape, dtype=dtype, device="meta"))


def layer_paths(config: LlamaConfig) -> list[str]:
    """Module paths of the linear layers of the blocks, in the order in which a token meets them."""
    with torch.device("meta"):
        return [matrix.module for matrix in inventory(LlamaForCausalLM(config)).matrices]


def weight_bytes(modules: Sequence[nn.Module]) -> int:
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def multiplications(modules: Sequence[nn.Module]) -> int:
    """For one vector: every entry of every linear layer inside is used once."""
    linears = (inner for module in modules for inner in module.modules() if isinstance(inner, nn.Linear))
    return sum(linear.weight.numel() for linear in linears)


class Subject:
    """A model with what is needed to time it."""

    def __init__(self, model: Any, paths: Sequence[str], prompt: Tensor, short: Tensor, steps: int) -> None:
        self.model, self.steps, self._prompt, self._short = model, steps, prompt, short
        self.layers: list[Any] = [model.get_submodule(path) for path in paths]
        generator = torch.Generator().manual_seed(0)
        self._vectors = {
            size: torch.randn(1, size, generator=generator).to(model.dtype)
            for size in {layer.in_features for layer in self.layers}
        }

    def linears(self) -> float:
        start = time.perf_counter()
        for layer in self.layers:
            layer(self._vectors[layer.in_features])
        return time.perf_counter() - start

    def decode(self) -> float:
        """Seconds a token, `steps` tokens after the short prompt."""
        cache = DynamicCache(config=self.model.config)
        token = self._forward(self._short, cache)
        start = time.perf_counter()
        for _ in range(self.steps):
            token = self._forward(token, cache)
        return (time.perf_counter() - start) / self.steps

    def prefill(self) -> float:
        start = time.perf_counter()
        self._forward(self._prompt, DynamicCache(config=self.model.config))
        return time.perf_counter() - start

    def _forward(self, ids: Tensor, cache: DynamicCache) -> Tensor:
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token: Tensor = out.logits[:, -1:].argmax(-1)
        return token

    def ideal_cost(self, phase: str) -> int:
        """Bytes that a token reads, or multiplications of linear layers in a prefill."""
        head = [self.model.lm_head]
        if phase == "prefill":
            return multiplications(self.layers)
        return weight_bytes(self.layers if phase == "linears" else [*self.layers, *head])


def in_turns(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """Seconds of both in each round, after one warm-up; who goes first changes from round to round."""
    first(), second()
    taken = []
    for turn in range(rounds):
        if turn % 2:
            late, early = second(), first()
            taken.append((early, late))
        else:
            taken.append((first(), second()))
    return taken


def compare(
    dense: Subject, low: Subject, phase: str, rounds: int, keep: float, storage: str, cache: int
) -> Row:
    taken = in_turns(getattr(dense, phase), getattr(low, phase), rounds)
    ratios = sorted(one / other for one, other in taken)
    working_set = weight_bytes(low.layers)
    return Row(
        keep=keep,
        storage=storage,
        phase=phase,
        keep_achieved=working_set / weight_bytes(dense.layers),
        working_set=working_set,
        dense_ms=1e3 * median(one for one, _ in taken),
        low_ms=1e3 * median(other for _, other in taken),
        ideal=dense.ideal_cost(phase) / low.ideal_cost(phase),
        spread=ratios[(3 * len(ratios)) // 4] - ratios[len(ratios) // 4],
        in_cache=phase != "prefill" and working_set <= cache,
    )


def last_level_cache() -> int:
    """Bytes, as Linux reports them; 0 where it does not."""
    sizes = [path.read_text().strip() for path in CACHE.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=0)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def about(options: argparse.Namespace) -> dict[str, Any]:
    shape = ("hidden", "layers", "intermediate", "kv_heads", "vocabulary", "align", "dtype", "threads")
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "last_level_cache": last_level_cache(),
        **{name: getattr(options, name) for name in shape},
    }


def describe(row: Row) -> str:
    note = " (fits the cache)" if row.in_cache else ""
    return (
        f"| {row.keep:g} {row.storage} | {row.phase} | {row.keep_achieved:.3f} "
        f"| {row.working_set / 1e6:,.0f} MB{note} | {row.dense_ms:,.1f} | {row.low_ms:,.1f} "
        f"| {row.speedup:.2f}x | {row.spread:.2f} | {row.ideal:.2f}x | {row.share:.0%} |"
    )


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Time every keep, storage and phase; the rows are printed as they come."""
    config, dtype = configuration(options), getattr(torch, options.dtype)
    prompt = torch.randint(options.vocabulary, (1, options.prompt))
    paths = layer_paths(config)

    def subject(keep: float | None, storage: str) -> Subject:
        model = random_model(config, dtype, keep, storage, options.align)
        return Subject(model, paths, prompt, prompt[:, :64], options.steps)

    facts, dense = about(options), subject(None, "")
    facts["dense_working_set"] = weight_bytes(dense.layers)
    facts["dense_model_bytes"] = weight_bytes([dense.model])
    print(json.dumps(facts, indent=2))
    print(
        "\n| keep, storage | phase | bytes kept | weights | dense ms | low ms | speed-up | spread | ideal "
        "| share |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for storage in options.storage.split(","):
        for keep in map(float, options.keeps.split(",")):
            low = subject(keep, storage)
            for phase in options.phases.split(","):
                rounds = options.prefill_rounds if phase == "prefill" else options.rounds
                row = compare(dense, low, phase, rounds, keep, storage, facts["last_level_cache"])
                rows.append({**asdict(row), "speedup": row.speedup, "share_of_ideal": row.share})
                print(describe(row), flush=True)
            del low
    return {**facts, "rows": rows}


def write_model(options: argparse.Namespace, directory: Path) -> None:
    """The dense model with a tokenizer of one token a word, and a file of random words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(options.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", model_max_length=2048)
    fast.save_pretrained(directory / "model")
    config = configuration(options)
    random_model(config, getattr(torch, options.dtype), None, "", 1).save_pretrained(directory / "model")
    draw = random.Random(0)
    text = " ".join(f"w{draw.randrange(options.vocabulary)}" for _ in range(options.tokens))
    (directory / "text.txt").write_text(text)


def run_lowrank(options: argparse.Namespace, directory: Path, method: Any) -> dict[str, Any]:
    """`kanna lowrank` in this process; called in one of its own."""
    from kanna.methods.lowrank.run import lowrank

    config = LowRankConfig(
        keep=0.8 if method == "whitened" else 0.6,
        method=method,
        allocation="uniform",
        outputs="equal",
        tokens=options.tokens,
        context=256,
        batch=4,
    )
    out = directory / f"out-{method}"
    result = lowrank(
        directory / "model", out, config, calibration=directory / "text.txt", cache=directory / "cache"
    )
    return {
        "method": method,
        "keep": config.keep,
        "peak_bytes": result.run["peak_memory_bytes"],
        "predicted_bytes": result.plan.memory,
        "model_bytes": result.figures["model_bytes_before"],
        "seconds": result.run["seconds"],
        "stage_seconds": result.run["stage_seconds"],
        "verdict": result.passed,
    }


def in_own_process(options: argparse.Namespace, directory: Path, task: str) -> dict[str, Any]:
    """Run this script for one task, so that the memory of one does not count for another."""
    names = ("hidden", "layers", "intermediate", "vocabulary", "dtype", "threads", "tokens")
    same = [f"--{name}={getattr(options, name)}" for name in names]
    command = [sys.executable, __file__, *same, f"--kv-heads={options.kv_heads}", f"--task={task}"]
    command.append(f"--directory={directory}")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    facts = about(options)
    print(json.dumps(facts, indent=2))
    print(
        "\n| method | keep | model on disk | peak memory | predicted | seconds |"
        "\n|---|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        in_own_process(options, directory, "write")
        rows = []
        for method in options.methods.split(","):
            rows.append(row := in_own_process(options, directory, method))
            sizes = " | ".join(
                f"{row[key] / 1e9:.2f} GB" for key in ("model_bytes", "peak_bytes", "predicted_bytes")
            )
            print(f"| {method} | {row['keep']:g} | {sizes} | {row['seconds']:.0f} |", flush=True)
    return {**facts, "tokens": options.tokens, "rows": rows}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keeps", default="0.8,0.5,0.3", help="comma separated")
    parser.add_argument("--storage", default="pair,pivot", help="comma separated")
    parser.add_argument("--phases", default="linears,decode,prefill", help="comma separated")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--align", type=int, default=64, help="ranks are multiples of it")
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--intermediate", type=int, default=5504)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as query heads")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prefill")
    parser.add_argument("--steps", type=int, default=4, help="tokens decoded in a round")
    parser.add_argument("--rounds", type=int, default=9, help="of linears and decode")
    parser.add_argument("--prefill-rounds", type=int, default=3)
    parser.add_argument(
        "--peak-memory", action="store_true", help="measure the memory of kanna lowrank instead"
    )
    parser.add_argument("--methods", default="whitened,anchored", help="of --peak-memory, comma separated")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration, for --peak-memory")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.task == "write":
        write_model(options, options.directory)
        print("{}")
        return 0
    if options.task:
        print(json.dumps(run_lowrank(options, options.directory, options.task)))
        return 0
    with torch.no_grad():
        figures = measure_memory(options) if options.peak_memory else measure_speed(options)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
