"""Chains of several steps beside fewer bits alone, at equal bytes, on the shipped model.

    python benchmarks/peqa_chain.py             three seeds where something is trained
    python benchmarks/peqa_chain.py --seeds 0   one

Low rank, whole numbers and tuned scales, one after the other (`examples/shrink-quantize-tune.yaml` is such a
chain), beside whole numbers alone, tuned or not: which is the better use of as many bytes? And Basel at half
or a quarter of the parameters, then 8 bits, beside 4 and 2 bits alone. What Basel trains has no counterpart
in rounding, so scales that are tuned on the same rows for about as long stand beside it.

Printed are bytes of the quantised matrices (codes, scales, zero-points and what they are parted into) and of
the whole file, right answers with the paired 95 % interval of the difference to the first row of each table,
and the loss per answer. Each finished run is a line of --journal and not done again.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from safetensors import safe_open
from transformers.utils.logging import disable_progress_bar

import kanna
from journalled import Journal, interval
from peqa_tasks import Task, answers, demo_repair

ROWS, LONG = 600, 200
Step = tuple[str, Mapping[str, Any]]


def lowrank(keep: float) -> Step:
    return "lowrank", {"keep": keep}


def whole(bits: int, group: str = "32") -> Step:
    return "quantize", {"bits": bits, "group": group}


def tune(granularity: str = "channel", steps: int = 100) -> Step:
    return "tune", {"granularity": granularity, "steps": steps}


def basel(keep: float) -> Step:
    return "basel", {"keep": keep}


# Tables: name -> steps; the first is what the others are compared with.
TABLES: dict[str, dict[str, tuple[Step, ...]]] = {
    "as large as 4 bits": {
        "4 bits alone": (whole(4),),
        "4 bits, tuned": (whole(4), tune()),
        "keep 0.8, 5 bits": (lowrank(0.8), whole(5)),
        "keep 0.8, 5 bits, tuned": (lowrank(0.8), whole(5), tune()),
        "keep 0.6, 8 bits": (lowrank(0.6), whole(8, "128")),
        "keep 0.6, 8 bits, tuned": (lowrank(0.6), whole(8, "128"), tune()),
    },
    "as large as 3 bits": {
        "3 bits alone": (whole(3),),
        "3 bits, tuned": (whole(3), tune()),
        "keep 0.8, 4 bits": (lowrank(0.8), whole(4)),
        "keep 0.8, 4 bits, tuned": (lowrank(0.8), whole(4), tune()),
        "keep 0.8, 4 bits, tuned by group": (lowrank(0.8), whole(4), tune("group")),
    },
    "Basel at a half, 8 bits": {
        "Basel, keep 0.5, 8 bits": (basel(0.5), whole(8, "channel")),
        "4 bits alone": (whole(4, "channel"),),
        "4 bits, tuned": (whole(4, "channel"), tune(steps=LONG)),
    },
    "Basel at a quarter, 8 bits": {
        "Basel, keep 0.25, 8 bits": (basel(0.25), whole(8, "channel")),
        "2 bits alone": (whole(2, "128"),),
        "2 bits, tuned": (whole(2, "128"), tune(steps=LONG)),
        "2 bits, tuned by group": (whole(2, "128"), tune("group", LONG)),
        "keep 0.25, 8 bits": (lowrank(0.25), whole(8, "channel")),
        "keep 0.25, 8 bits, tuned": (lowrank(0.25), whole(8, "channel"), tune(steps=LONG)),
    },
}


def carry_out(step: Step, model: Path, out: Path, task: Task, seed: int) -> None:
    """One step of a chain."""
    verb, given = step
    common: dict[str, Any] = {"context": task.context}
    if verb == "lowrank":
        low = kanna.LowRankConfig(tokens=8192, align=1, **common, **given)
        kanna.lowrank(model, out, low, calibration=task.calibration)
    elif verb == "quantize":
        codes = kanna.QuantizeConfig(tokens=8192, **common, **given)
        kanna.quantize(model, out, codes, calibration=task.calibration)
    elif verb == "tune":
        scales = kanna.TuneConfig(data=task.learnt, name="tuned", seed=seed, **common, **given)
        kanna.tune(model, scales, out=out)
    else:
        bases = kanna.BaselConfig(data=task.learnt, seed=seed, **common, **given)
        kanna.basel(model, out, bases)


def sizes(model: Path, original: Path) -> dict[str, int]:
    """Bytes of what stands for the original's matrices, tuned scales included, and of all."""
    with safe_open(original / "model.safetensors", "pt") as file:
        matrices = {name.removesuffix(".weight") for name in file.keys() if name.endswith("_proj.weight")}  # noqa: SIM118
    total = selected = 0
    with safe_open(model / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            size = file.get_tensor(name).nbytes
            total += size
            selected += size if any(name.startswith(f"{matrix}.") for matrix in matrices) else 0
    scales = sum(path.stat().st_size for path in (model / "scales").rglob("*.safetensors"))
    return {"selected": selected + scales, "whole": total + scales}


def run(steps: Sequence[Step], task: Task, seed: int) -> dict[str, Any]:
    """A chain from the dense model on."""
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = task.model
        for number, step in enumerate(steps):
            out = Path(folder) / str(number)
            carry_out(step, model, out, task, seed)
            model = out
        spent = time.process_time() - cpu
        return {**answers(model, task), **sizes(model, task.model), "cpu": spent}


def table(
    chains: Mapping[str, tuple[Step, ...]], task: Task, journal: Journal, seeds: Sequence[int]
) -> Iterator[str]:
    """Rows as they are done."""
    yield "| | matrices | whole | right | to the first (95 %) | log-loss | CPU s |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    first = None
    for name, steps in chains.items():
        trained = any(verb in ("tune", "basel") for verb, _ in steps)
        told = [[verb, sorted(given.items())] for verb, given in steps]
        runs = [
            journal.once([told, seed], lambda s=steps, n=seed: run(s, task, n))
            for seed in (seeds if trained else seeds[:1])
        ]
        hits = np.array([[int(mark) for mark in one["hits"]] for one in runs], dtype=float)
        mean, low, high = interval(hits.mean(0)[None], hits.mean(0)[None] if first is None else first)
        away = "" if first is None else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        first = hits.mean(0)[None] if first is None else first
        yield (
            f"| {name} | {runs[0]['selected'] / 1e3:,.0f} kB | {runs[0]['whole'] / 1e3:,.0f} kB | "
            f"{hits.mean():.1%} | {away} | {fmean(fmean(one['losses']) for one in runs):.3f} | "
            f"{fmean(one['cpu'] for one in runs):.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--journal", type=Path, default=Path("peqa_chain.jsonl"))
    options = parser.parse_args()
    disable_progress_bar()
    journal = Journal(options.journal)
    with tempfile.TemporaryDirectory() as folder:
        task = demo_repair(Path(folder), ROWS)
        dense = journal.once(["dense"], lambda: run((), task, 0))
        right, loss = dense["hits"].count("1") / len(dense["hits"]), fmean(dense["losses"])
        print(
            f"as it was: {dense['selected'] / 1e3:,.0f} kB of matrices, {dense['whole'] / 1e3:,.0f} kB, "
            f"{right:.1%} right, log-loss {loss:.4f}"
        )
        for name in options.tables:
            print(f"\n{name}\n")
            for line in table(TABLES[name], task, journal, options.seeds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
