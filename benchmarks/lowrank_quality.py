"""What low-rank replacement costs in perplexity, beside the usual rule and plain rounding of the same size.

    python benchmarks/lowrank_quality.py MODEL --calibration FILE --text FILE --out results.jsonl

Each row of the table is one model made from MODEL and scored on every `--text`, which must not be the
calibration text: windows of `--context` tokens that do not overlap, the first `--eval-tokens` tokens,
computed in float32 from weights rounded to the dtype of MODEL's files. Rows are

    dense     MODEL itself
    kanna     what `kanna lowrank` writes, for every method, allocation, storage and keep asked for
    usual     the usual rule, written here without kanna: input statistics of the dense model, their Cholesky
              factor, `torch.linalg.svd` of the whitened weight, rank int(keep m n / (m + n)) everywhere; from
              the first `--tokens` tokens of the calibration file, and (shuffled) from the very windows that
              kanna uses, so that the choice of text and the method can be told apart
    rtn       round-to-nearest integers, asymmetric, one float16 scale and one zero-point for each group of
              128 inputs (the largest power of two up to 128 that divides them); embeddings stay as they are,
              as in the other rows. It has no keep: compare it with the row of the same bytes

`keep` counts the linear layers of the blocks alone; `model` is the whole model's bytes. "excess" is
log(perplexity) minus that of the dense model. Each row is computed in a process of its own, whose peak memory
is that of making the model, not of scoring it. Rows of one method share statistics (or, for the usual rule,
decompositions) through a cache: only the first of them pays for those. The file given as `--out` gets one
JSON line a row; rows found in it are not computed again.
"""

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 128
SCALE_BYTES = 2
UNWEIGHED = ("plain", "asvd", "fwsvd")  # methods that have no output metric


@dataclass(frozen=True)
class Spec:
    """What a row is made of; fields that do not apply keep their defaults.

    Args:
        kind: dense, kanna, usual or rtn.
        order: Of the calibration text, for `usual`: file or shuffled.
    """

    kind: str
    keep: float = 1.0
    method: str = ""
    allocation: str = ""
    outputs: str = ""
    storage: str = "pair"
    refine: int = 0
    order: str = ""
    bits: int = 0

    @property
    def label(self) -> str:
        if self.kind == "kanna":
            parts = [f"{self.method}{f' + refine {self.refine}' if self.refine else ''}", self.allocation]
            parts += [self.outputs] * bool(self.outputs) + ["pivot"] * (self.storage == "pivot")
            return ", ".join(parts)
        return {
            "dense": "dense",
            "usual": f"usual rule, text in {self.order} order",
            "rtn": f"rounding to {self.bits} bits",
        }[self.kind]


@dataclass(frozen=True)
class Made:
    """A model in float32, and what it would take on disk.

    Args:
        keep_bytes: Bytes of the linear layers of the blocks over the dense ones.
        model_bytes: Of all tensors.
        peak: Bytes of this process's memory at most so far.
    """

    model: Any
    tokenizer: Any
    keep_bytes: float
    model_bytes: int
    seconds: float
    peak: int
    notes: dict[str, Any]


def specs(options: argparse.Namespace) -> Iterator[Spec]:
    """The rows asked for, controls first."""
    yield Spec("dense")
    yield from (Spec("rtn", bits=int(bits)) for bits in listed(options.bits))
    keeps = [float(keep) for keep in listed(options.keeps)]
    if not options.no_usual:
        yield from (Spec("usual", keep, order=order) for keep in keeps for order in ("file", "shuffled"))
    axes = product(
        listed(options.methods), listed(options.allocations), listed(options.outputs), listed(options.storage)
    )
    for method, allocation, outputs, storage in axes:
        if method in UNWEIGHED and outputs == "gradient":
            continue
        named = "" if outputs == "default" else outputs
        for refine in sorted({0, options.refine if method == "anchored" else 0}):
            yield from (Spec("kanna", k, method, allocation, named, storage, refine) for k in keeps)


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def make(spec: Spec, options: argparse.Namespace, scratch: Path) -> Made:
    """The model of a row.

    Args:
        scratch: Emptied after the row.
    """
    if spec.kind == "kanna":
        return make_kanna(spec, options, scratch)
    start = time.perf_counter()
    model, tokenizer, stored = load_dense(options.model)
    total = sum(parameter.numel() for parameter in model.parameters()) * stored.itemsize  # tied ones once
    linears = block_linears(model)
    before = sum(linear.weight.numel() for linear in linears.values()) * stored.itemsize
    after = before
    notes: dict[str, Any] = {}
    with torch.no_grad():
        if spec.kind == "usual":
            after, notes = usual_rule(model, tokenizer, linears, spec, options, stored)
        elif spec.kind == "rtn":
            after, notes = rounding(linears, spec.bits)
    seconds = time.perf_counter() - start
    return Made(model, tokenizer, after / before, total - before + after, seconds, peak_memory(), notes)


def make_kanna(spec: Spec, options: argparse.Namespace, scratch: Path) -> Made:
    from kanna.checkpoint.loader import load
    from kanna.methods.lowrank.config import LowRankConfig
    from kanna.methods.lowrank.run import lowrank, parse_config

    settings = {
        "keep": spec.keep,
        "method": spec.method if spec.method != "default" else None,
        "allocation": spec.allocation if spec.allocation != "default" else None,
        "outputs": spec.outputs or None,
        "storage": spec.storage,
        "refine": spec.refine,
        "tokens": options.tokens,
        "context": options.context,
    }
    result = lowrank(
        options.model,
        scratch / "out",
        parse_config(settings),
        calibration=options.calibration,
        cache=options.cache,
    )
    peak = peak_memory()
    model, tokenizer = load(scratch / "out", dtype=torch.float32)
    figures, resolved = result.figures, result.plan.config
    saved = figures["model_bytes_before"] - figures["model_bytes_after"]
    selected = result.plan.dense_parameters * stored_dtype(options.model).itemsize
    usual = LowRankConfig(keep=spec.keep).resolved(has_text=True, gradients=True)
    chosen = ("method", "allocation", "outputs", "storage", "refine")
    notes = {
        "resolved": {name: getattr(resolved, name) for name in chosen},
        "is_default": all(getattr(resolved, name) == getattr(usual, name) for name in chosen),
        "keep_parameters": figures["keep_selected"],
        "verdict": result.passed,
        "stage_seconds": result.run["stage_seconds"],
    }
    seconds, size = result.run["seconds"], figures["model_bytes_after"]
    return Made(model, tokenizer, 1 - saved / selected, size, seconds, peak, notes)


def load_dense(directory: str) -> tuple[Any, Any, torch.dtype]:
    """Model in float32, tokenizer, and the dtype of the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return model.eval(), tokenizer, stored_dtype(directory)


def stored_dtype(directory: str) -> torch.dtype:
    """The dtype that most bytes of the files have."""
    from kanna.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(directory)
    sizes: dict[torch.dtype, int] = {}
    for name, tensor in checkpoint.tensors.items():
        sizes[checkpoint.dtype(name)] = sizes.get(checkpoint.dtype(name), 0) + tensor.bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def block_linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers other than the output embedding, by path."""
    head = model.get_output_embeddings()
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not found:
        raise SystemExit(f"{type(model).__name__} has no nn.Linear in its blocks: this benchmark needs them")
    return found


def usual_rule(
    model: Any,
    tokenizer: Any,
    linears: dict[str, nn.Linear],
    spec: Spec,
    options: argparse.Namespace,
    stored: torch.dtype,
) -> tuple[int, dict[str, Any]]:
    """Truncate every linear layer in place; bytes of the factors, and what had to be added to statistics."""
    held = decompositions(model, tokenizer, linears, spec.order, options)
    size = 0
    for path, linear in linears.items():
        m, n = linear.weight.shape
        rank = int(spec.keep * m * n / (m + n))
        expand, reduce = (held[f"{path}:{part}"] for part in ("expand", "reduce"))
        left, right = expand[:, :rank].to(stored).float(), reduce[:rank].to(stored).float()
        linear.weight.copy_(left @ right)
        size += rank * (m + n) * stored.itemsize
    return size, {"largest_added_ridge": float(held["ridge"])}


def decompositions(
    model: Any, tokenizer: Any, linears: dict[str, nn.Linear], order: str, options: argparse.Namespace
) -> dict[str, Tensor]:
    """Full factors of every layer, of which each rank is a prefix, through a file in the cache."""
    from safetensors.torch import load_file, save_file

    facts = [options.model, str(options.calibration), options.tokens, options.context]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    file = options.cache / f"usual-{order}-{key}.safetensors"
    if file.is_file():
        return load_file(file)
    make_windows = in_file_order if order == "file" else shuffled
    statistics = gather(model, linears, make_windows(tokenizer, options))
    held: dict[str, Tensor] = {}
    worst = 0.0
    for path, linear in linears.items():
        expand, reduce, ridge = whitened_svd(linear.weight.double(), statistics.pop(path))
        held |= {f"{path}:expand": expand.float().contiguous(), f"{path}:reduce": reduce.float().contiguous()}
        worst = max(worst, ridge)
    held["ridge"] = torch.tensor(worst)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(held, file)
    return held


def in_file_order(tokenizer: Any, options: argparse.Namespace) -> Tensor:
    """(windows, context) token numbers: the rows one after the other, each followed by the end token."""
    from kanna.tasks.data.rows import read_rows

    stream: list[int] = []
    for row in read_rows(options.calibration):
        stream += tokenizer(row.text, verbose=False)["input_ids"]
        stream += [tokenizer.eos_token_id] * (tokenizer.eos_token_id is not None)
        if len(stream) >= options.tokens:
            break
    kept = min(len(stream), options.tokens) // options.context * options.context
    return torch.tensor(stream[:kept]).view(-1, options.context)


def shuffled(tokenizer: Any, options: argparse.Namespace) -> Tensor:
    """The windows that `kanna lowrank` calibrates on."""
    from kanna.calibration.windows import packed
    from kanna.tasks.data.rows import read_rows

    return packed(read_rows(options.calibration), tokenizer, options.tokens, options.context, seed=0).ids


def gather(model: Any, linears: dict[str, nn.Linear], windows: Tensor) -> dict[str, Tensor]:
    """sum x x^T (n, n) in float64 of the inputs of every layer, from hooks on the whole dense model."""
    grams: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            product_ = (rows.T @ rows).double()
            grams[path] = grams[path].add_(product_) if path in grams else product_

        return add

    handles = [linear.register_forward_pre_hook(hook(path)) for path, linear in linears.items()]
    for batch in torch.split(windows, 8):
        model(batch, use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return grams


def whitened_svd(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, float]:
    """expand (m, r), reduce (r, n), whose prefixes are the best pairs of their rank; and the ridge."""
    lower, ridge = cholesky(gram)
    left, values, right = torch.linalg.svd(weight @ lower, full_matrices=False)
    root = values.sqrt()
    reduce = torch.linalg.solve_triangular(lower, root[:, None] * right, upper=False, left=False)
    return left * root, reduce, ridge


def cholesky(gram: Tensor) -> tuple[Tensor, float]:
    """The lower factor; where there is none, a growing share of the mean diagonal is added first."""
    share = 0.0
    while True:
        added = share * float(gram.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(gram + added * torch.eye(len(gram), dtype=gram.dtype))
        if not int(failed):
            return lower, share
        share = 10 * share or 1e-9


def rounding(linears: dict[str, nn.Linear], bits: int) -> tuple[int, dict[str, Any]]:
    """Round every linear layer in place; bytes of codes, scales and zero-points, and the group sizes."""
    size, groups = 0, set()
    for linear in linears.values():
        group = math.gcd(linear.in_features, GROUP)
        linear.weight.copy_(rounded(linear.weight, bits, group))
        size += rounded_bytes(linear.weight.numel(), bits, group)
        groups.add(group)
    return size, {"groups": sorted(groups), "bits": bits}


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """Weight (m, n) after rounding to `bits` bits in groups of `group` inputs, zero being representable."""
    levels = 2**bits - 1
    parts = weight.reshape(-1, group)
    low, high = parts.amin(1, keepdim=True).clamp(max=0), parts.amax(1, keepdim=True).clamp(min=0)
    smallest = torch.finfo(torch.float16).tiny
    scale = ((high - low) / levels).clamp(min=smallest).half().float()
    zero = (-low / scale).round().clamp(0, levels)
    codes = ((parts / scale).round() + zero).clamp(0, levels)
    result: Tensor = (codes - zero) * scale
    return result.view_as(weight)


def rounded_bytes(numbers: int, bits: int, group: int) -> int:
    """Codes and zero-points of `bits` bits, packed, and a float16 scale a group."""
    groups = numbers // group
    return (numbers * bits + 7) // 8 + (groups * bits + 7) // 8 + groups * SCALE_BYTES


def score(made: Made, options: argparse.Namespace) -> dict[str, float]:
    """Perplexity by name of text."""
    from kanna.tasks.data.rows import read_rows
    from kanna.tasks.scorers.perplexity import perplexity

    found = {}
    for text in options.text:
        joined = "\n\n".join(row.text for row in read_rows(text))
        ids = made.tokenizer(joined, return_tensors="pt", verbose=False)["input_ids"][0]
        result = perplexity(made.model, ids[: options.eval_tokens], options.context, options.context)
        found[Path(text).stem] = result.perplexity
    return found


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compute_row(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        made = make(spec, options, Path(scratch))
        started = time.perf_counter()
        scores = score(made, options)
    return {
        "keep_bytes": made.keep_bytes,
        "model_bytes": made.model_bytes,
        "perplexity": scores,
        "seconds": round(made.seconds, 2),
        "seconds_scoring": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": made.peak,
        **made.notes,
    }


def in_own_process(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, options.model, f"--calibration={options.calibration}"]
    command += [f"--text={text}" for text in options.text]
    command += [f"--{name}={getattr(options, name)}" for name in ("tokens", "context", "threads", "cache")]
    command += [f"--eval-tokens={options.eval_tokens}", f"--row={json.dumps(asdict(spec))}"]
    command += [f"--scratch={options.scratch}"] if options.scratch else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What rows must share to stand in one table."""
    return {
        "model": Path(options.model).resolve().name,
        "calibration": options.calibration.name,
        "texts": [Path(text).stem for text in options.text],
        "tokens": options.tokens,
        "context": options.context,
        "eval_tokens": options.eval_tokens,
    }


def read_results(file: Path | None, settings: dict[str, Any]) -> dict[Spec, dict[str, Any]]:
    """Rows of earlier runs with these settings; a last line cut short by a kill is passed over."""
    found: dict[Spec, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file and file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["settings"] == settings:
            found[Spec(**row["spec"])] = row
    return found


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """All rows in order, and how many failed."""
    settings = settings_of(options)
    done = read_results(options.out, settings)
    rows: list[dict[str, Any]] = []
    failures = 0
    for spec in dict.fromkeys(specs(options)):
        if spec not in done:
            try:
                figures = in_own_process(spec, options)
            except RuntimeError as error:
                print(f"{spec.label}, keep {spec.keep:g}: failed\n{error}", file=sys.stderr, flush=True)
                failures += 1
                if spec.kind == "dense":
                    break
                continue
            dense = rows[0]["perplexity"] if rows else figures["perplexity"]
            done[spec] = {"spec": asdict(spec), "label": spec.label, "settings": settings, **figures}
            done[spec]["excess"] = excess(figures["perplexity"], dense)
            append(options.out, done[spec])
            print(f"{spec.label}, keep {spec.keep:g}: {figures['perplexity']}", file=sys.stderr, flush=True)
        rows.append(done[spec])
    return rows, failures


def excess(found: dict[str, float], dense: dict[str, float]) -> dict[str, float]:
    return {text: math.log(found[text] / dense[text]) for text in found}


def append(file: Path | None, row: dict[str, Any]) -> None:
    if file is None:
        return
    whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    with file.open("a") as stream:
        stream.write(("" if whole else "\n") + json.dumps(row) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: controls first, then by keep and by excess."""
    if not rows:
        return "no rows"
    dense = rows[0]
    texts = list(dense["perplexity"])
    heads = [head for text in texts for head in (f"{text} perplexity", "excess")]
    titles = ["asked keep", "row", "keep", "model", *heads, "seconds", "peak MB"]
    lines = ["| " + " | ".join(titles) + " |", "|---:|---|" + "---:|" * (len(titles) - 2)]
    ordered = sorted(rows, key=lambda row: (-row["spec"]["keep"], row["excess"][texts[0]]))
    lines += [line(row, texts, dense["model_bytes"]) for row in ordered]
    return "\n".join(lines)


def line(row: dict[str, Any], texts: Sequence[str], dense_bytes: int) -> str:
    scores = [
        cell for text in texts for cell in (f"{row['perplexity'][text]:,.2f}", f"{row['excess'][text]:+.3f}")
    ]
    low = row["spec"]["kind"] in ("kanna", "usual")
    cells = [
        f"{row['spec']['keep']:g}" if low else "",
        row["label"] + (" (default)" if row.get("is_default") else ""),
        f"{row['keep_bytes']:.4f}",
        f"{row['model_bytes'] / dense_bytes:.4f}",
        *scores,
        f"{row['seconds']:.0f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory of a causal language model with nn.Linear layers")
    parser.add_argument("--calibration", type=Path, required=True, help=".jsonl rows, or plain text")
    parser.add_argument("--text", action="append", required=True, help="to score; may be repeated")
    parser.add_argument("--keeps", default="0.9,0.8,0.6,0.4", help="comma separated")
    parser.add_argument("--methods", default="plain,asvd,whitened,anchored", help="also fwsvd, default")
    parser.add_argument("--allocations", default="uniform,global", help="also default")
    parser.add_argument("--outputs", default="default", help="default, equal, gradient; comma separated")
    parser.add_argument("--storage", default="pair", help="pair, pivot; comma separated")
    parser.add_argument(
        "--refine", type=int, default=0, help="also rows of anchored with so many steps a block"
    )
    parser.add_argument("--bits", default="8,6,4", help="of the rounded controls; empty for none")
    parser.add_argument("--no-usual", action="store_true", help="leave out the usual rule")
    parser.add_argument("--tokens", type=int, default=32_768, help="of calibration")
    parser.add_argument("--context", type=int, default=256, help="window of calibration and of scoring")
    parser.add_argument("--eval-tokens", type=int, default=10_240)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, help="kept between runs; a temporary one by default")
    parser.add_argument("--scratch", type=Path, help="where models are written and deleted again")
    parser.add_argument("--out", type=Path, help="JSON lines, read for rows already there")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.row:
        print(json.dumps(compute_row(Spec(**json.loads(options.row)), options)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or Path(temporary)
        rows, failures = run(options)
    print(table(rows))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
