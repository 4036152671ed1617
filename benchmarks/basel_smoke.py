"""A smoke test of Basel on a larger model: does it run, and is it about where it should be? No verdict.

    python benchmarks/basel_smoke.py --model ~/.cache/kanna-zoo/smollm2-135m --data ../shared/data/math

At each of --keep, Basel by default beside whitened factors of uniform ranks that are trained for as long
(`--start`), on the first rows of DATA/train.jsonl, and the first of DATA/test.jsonl asked; one seed, rates as
they come. 60 steps of 8 rows are far from enough to learn: what is seen is the order, not the height.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kanna

EPOCHS = "1,2,3"  # so a sixth of the steps is an epoch


def first_rows(source: Path, target: Path, count: int) -> Path:
    """Prompts and answers alone."""
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    rows = [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in lines]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def asked(model: Path, test: Path, context: int) -> dict[str, float]:
    """Right answers, written out and compared exactly, and the loss of the right ones."""
    metrics = {"right": "exact", "loss": "log_loss"}
    return {
        name: float(
            kanna.evaluate(model, [test], kanna.EvalOptions(metric=metric, context=context)).scores[0].value
        )
        for name, metric in metrics.items()
    }


def trained(method: str, keep: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    began, out = time.process_time(), folder / f"{method}-{keep:g}"
    given: dict[str, Any] = {
        "data": folder / "train.jsonl",
        "validation": folder / "held.jsonl",
        "rows": options.rows,
        "epochs": EPOCHS,
        "context": options.context,
    }
    if method == "whitened, uniform":
        low = folder / f"low-{keep:g}"
        how = kanna.LowRankConfig(
            keep=keep, method="whitened", allocation="uniform", tokens=8192, context=options.context
        )
        kanna.lowrank(options.model, low, how, calibration=folder / "train.jsonl")
        config = kanna.BaselConfig(start=low, **given)
    else:
        config = kanna.BaselConfig(keep=keep, **given)
    figures = kanna.basel(options.model, out, config).figures
    return {
        "kept": figures["keep_selected"],
        "held out": figures["validation_loss"],
        **asked(out, folder / "test.jsonl", options.context),
        "cpu": time.process_time() - began,
    }


def lines(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The table, as it is done."""
    count = options.steps * options.rows // 6
    first_rows(options.data / "train.jsonl", folder / "all.jsonl", count + options.rows)
    every = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(every[:count]), encoding="utf-8")
    (folder / "held.jsonl").write_text("".join(every[count:]), encoding="utf-8")
    first_rows(options.data / "test.jsonl", folder / "test.jsonl", options.questions)
    yield f"SMOKE TEST: {options.model.name}, {options.steps} steps of {options.rows} rows, one seed"
    before = asked(options.model, folder / "test.jsonl", options.context)
    yield f"before: {before['right']:.1%} right, loss {before['loss']:.3f}"
    yield "| | keep | loss held out | right | loss | CPU s |\n|---|---:|---:|---:|---:|---:|"
    for keep in options.keep:
        for method in ("basel", "whitened, uniform"):
            found = trained(method, keep, options, folder)
            yield (
                f"| {method} | {found['kept']:.3f} | {found['held out']:.3f} | {found['right']:.1%} | "
                f"{found['loss']:.3f} | {found['cpu']:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--context", type=int, default=256)
    options = parser.parse_args()
    options.model = options.model.expanduser()
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(options, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
