"""Basel beside low-rank factors that are trained for as many steps on the same rows.

    python benchmarks/basel_quality.py                        the shipped model: all skills, and two of them
    python benchmarks/basel_quality.py --seeds 0 1 2          with more seeds

Rows of every run: the same optimiser steps (part 1 and 2 of Basel together; all of them on the factors of the
others), the same batches, the same rates. Each finished run is a line of --journal, which is not done again.
Printed are right answers on questions that were not learnt, the loss per token on rows that were held out of
the data, and the share of the selected matrices' parameters that is left.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kanna

DEMO = Path(kanna.__file__).parent / "demo"
ROWS = 600
SKILLS = {"all": (), "price+share": ("price", "share")}
# Name -> settings of Basel, or of the low-rank directory that is trained.
METHODS: dict[str, dict[str, Any]] = {
    "basel, fisher": {"importance": "fisher"},
    "basel, sigma": {"importance": "sigma"},
    "lowrank, default": {"low": {}},
    "lowrank, whitened uniform": {"low": {"method": "whitened", "allocation": "uniform"}},
    "SVD, uniform": {"low": {"method": "plain", "allocation": "uniform"}},
}


@dataclass(frozen=True)
class Task:
    """Rows to learn, questions to answer, and text to calibrate on."""

    learnt: Path
    asked: Path
    text: Path


def task_of(skills: tuple[str, ...], scratch: Path) -> Task:
    """New rows of some of the demo's skills, or of all, and its own questions on them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    from train_demo import distinct, stories

    questions = [json.loads(line) for line in (DEMO / "data" / "questions.jsonl").open(encoding="utf-8")]
    asked = [row for row in questions if not skills or row["skill"] in skills]
    per_skill = ROWS // (len(skills) or 5)
    rows = [
        row for row in distinct(stories(77, held_out=False), per_skill) if not skills or row.skill in skills
    ]
    scratch.mkdir(parents=True, exist_ok=True)
    task = Task(scratch / "train.jsonl", scratch / "asked.jsonl", scratch / "text.jsonl")
    _write(task.learnt, [{"prompt": r.prompt, "answer": r.answer, "group": r.group} for r in rows])
    _write(task.asked, [{key: row[key] for key in ("prompt", "answer", "group")} for row in asked])
    _write(task.text, [{"text": row.text} for row in rows])
    return task


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(method: str, task: Task, keep: float, seed: int, epochs: str, scratch: Path) -> dict[str, Any]:
    """One row of the table."""
    settings = dict(METHODS[method])
    model, out = DEMO / "model", scratch / "out"
    given: dict[str, Any] = {"data": task.learnt, "epochs": epochs, "seed": seed}
    if (low := settings.pop("low", None)) is not None:
        config = kanna.LowRankConfig(keep=keep, tokens=8192, context=64, align=1, **low)
        kanna.lowrank(model, scratch / "low", config, calibration=task.text)
        given["start"] = scratch / "low"
    else:
        given |= {"keep": keep, **settings}
    started, cpu = time.perf_counter(), time.process_time()
    criteria = kanna.criteria_of([str(task.asked)], "99pt")
    options = kanna.EvalOptions(metric="exact", context=64)
    result = kanna.basel(model, out, kanna.BaselConfig(**given), criteria=criteria, options=options)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert result.comparison is not None
    (found,) = result.comparison.to_dict()["tasks"]
    figures = result.figures
    return {
        "right": found["new"],
        "before": found["base"],
        "loss": figures["validation_loss"],
        "kept": figures["keep_selected"],
        "steps": figures["steps"],
        "seconds": seconds,
        "cpu": cpu,
    }


def runs(options: argparse.Namespace) -> Iterator[tuple[str, float, int, str]]:
    for seed in options.seeds:
        for skills, keep in zip(options.skills, options.keep, strict=True):
            for method in options.methods:
                yield skills, keep, seed, method


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skills", nargs="+", default=["all", "price+share"], choices=list(SKILLS))
    parser.add_argument("--keep", nargs="+", type=float, default=[0.25, 0.15], help="one for each --skills")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", default="1,2,3")
    parser.add_argument("--journal", type=Path, default=Path("basel_quality.jsonl"))
    options = parser.parse_args()
    done: dict[str, dict[str, Any]] = {}
    if options.journal.exists():
        for line in options.journal.open(encoding="utf-8"):
            done |= json.loads(line)
    for skills, keep, seed, method in runs(options):
        key = json.dumps([skills, keep, seed, method, options.epochs])
        if key not in done:
            with tempfile.TemporaryDirectory() as folder:
                task = task_of(SKILLS[skills], Path(folder) / "task")
                done[key] = run(method, task, keep, seed, options.epochs, Path(folder))
            with options.journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({key: done[key]}) + "\n")
        row = done[key]
        print(
            f"{skills:12s} keep {keep:.2f} seed {seed}  {method:26s} right {row['right']:.3f} (before "
            f"{row['before']:.3f})  held-out loss {row['loss']:.3f}  kept {row['kept']:.3f}  "
            f"{row['steps']} steps  {row['cpu']:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
