"""What rounding weights costs, by every way of `kanna quantize`, on one model after the other.

    python benchmarks/quantize_quality.py                              the shipped model at 2 bits
    python benchmarks/quantize_quality.py --model DIR --calibration FILE --text FILE --bits 3 --group 64

Each finished run is a line of --journal and not done again. Printed are the perplexity of text that was not
calibrated on, its excess over the model as it was in log-perplexity beside that of minmax, right answers and
the loss per answer where there are questions, bits a weight with scales, and seconds.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kanna
from journalled import Journal, demo_script, write_lines

DEMO = Path(kanna.__file__).parent / "demo"
WAYS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "mse": {"method": "mse"},
    "hqq": {"method": "hqq"},
    "gptq (default)": {"method": "gptq"},
    "gptq, refit": {"method": "gptq", "refit": True},
    "anchored": {"method": "gptq", "inputs": "anchored"},
    "anchored, refit": {"method": "gptq", "inputs": "anchored", "refit": True},
}


def new_stories(path: Path) -> Path:
    """Text of the kind that the shipped model has learnt, which is not among its calibration text."""
    script = demo_script()
    rows = script.distinct(script.stories(77, held_out=False), 80)
    return write_lines(path, [{"text": row.text} for row in rows])


def scores(model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Perplexity of the text, and answers to the questions."""
    found = {}
    text = kanna.evaluate_text(model, options.text, context=options.context, tokens=options.text_tokens)
    found["perplexity"] = text.result.perplexity
    if options.questions is not None:
        for metric in ("exact", "log_loss"):
            given = kanna.EvalOptions(metric=metric, context=options.context)
            found[metric] = kanna.evaluate(model, [options.questions], given).scores[0].value
    return found


def run(way: str, bits: int, group: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    config = kanna.QuantizeConfig(
        bits=bits, group=group, tokens=options.tokens, context=options.context, **WAYS[way]
    )
    calibration = options.calibration if WAYS[way]["method"] == "gptq" else None
    with tempfile.TemporaryDirectory() as folder:
        started, cpu = time.perf_counter(), time.process_time()
        result = kanna.quantize(options.model, Path(folder) / "out", config, calibration=calibration)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        found = scores(Path(folder) / "out", options)
    return {**found, "bits": result.figures["bits_a_weight"], "seconds": seconds, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--calibration", type=Path, default=DEMO / "data" / "calibration.jsonl")
    parser.add_argument(
        "--text", type=Path, help="of perplexity; by default new stories for the shipped model"
    )
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[2])
    parser.add_argument("--group", nargs="+", default=["32"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration")
    parser.add_argument("--text-tokens", type=int, default=8192, help="of perplexity")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--journal", type=Path, default=Path("quantize_quality.jsonl"))
    options = parser.parse_args()
    if options.model == DEMO / "model" and options.questions is None:
        options.questions = DEMO / "data" / "questions.jsonl"
    if options.text is None:
        scratch = tempfile.TemporaryDirectory()
        options.text = new_stories(Path(scratch.name) / "stories.jsonl")
    journal = Journal(options.journal)
    about = [str(options.model), options.tokens, options.text_tokens, options.context]

    def once(key: list[Any], compute: Callable[[], Any]) -> dict[str, Any]:
        found: dict[str, Any] = journal.once([*about, *key], compute)
        return found

    dense = once(["dense"], lambda: scores(options.model, options))
    told = "".join(f", {name} {dense[name]:.3f}" for name in ("exact", "log_loss") if name in dense)
    print(f"{options.model.name} as it is: perplexity {dense['perplexity']:.4f}{told}")
    for bits in options.bits:
        for group in options.group:
            print(f"\n{bits} bits, group {group}\n")
            print("| | perplexity | excess, of minmax's | right | log-loss | bits a weight | CPU s |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            least = None
            for way in options.ways:
                if way == "hqq" and group == "channel":
                    continue
                row = once([way, bits, group], lambda w=way, b=bits, g=group: run(w, b, g, options))
                excess = math.log(row["perplexity"] / dense["perplexity"])
                least = excess if least is None else least
                right = f"{row['exact']:.1%} | {row['log_loss']:.3f}" if "exact" in row else " | "
                print(
                    f"| {way} | {row['perplexity']:.4f} | {excess / least:.0%} | {right} | "
                    f"{row['bits']:.2f} | {row['cpu']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
