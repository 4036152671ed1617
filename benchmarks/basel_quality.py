"""Basel beside low-rank factors that are trained for as many steps on the same rows.

    python benchmarks/basel_quality.py                  the shipped model: two tasks, two sizes, three seeds
    python benchmarks/basel_quality.py --tasks math --zoo DIR --data DIR/math --seeds 0    another model
    python benchmarks/basel_quality.py --rows 3600      as many steps on rows of which none comes twice
    python benchmarks/basel_quality.py --full           more sizes and rows; goes on where it was killed
    python benchmarks/basel_quality.py --ablations --seeds 0    what each part of the method is worth

Every row of a table: the same optimiser steps (parts 1 and 2 of Basel together; all of them on the factors of
the others) and the same batches. The rates of each row are the best of three, by the loss on held-out rows
after half as many steps at the first of --keep. Each finished run is a line of --journal, not done again.

Printed are, over all seeds: right answers (written out, compared exactly) on questions that were not learnt,
with the difference to Basel by default and its paired 95 % interval (bootstrap over questions); the loss per
answer on them; the loss on what the task does not ask for, before and after; seconds of CPU.

Of magnitude pruning only the entries that stay are counted, not where they stand. Whole numbers are not
trained; their bits are the share of 16 that is kept, groups of 64, codes by GPTQ on the rows' text.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

import kanna
from basel_beside import pruned
from journalled import Journal, demo_script, interval, read_lines, write_lines

DEMO = Path(kanna.__file__).parent / "demo"
ROWS, ROWS_A_STEP = 600, 16
STEPS, SHORT_STEPS = 204, 102  # of 540 rows, six epochs and three; the others are held out
DEMO_SKILLS = {"demo": (), "demo, price+share": ("price", "share")}
EPOCHS, SHORT = "1,2,3", "1,1,1"
# Of weights and of factors; where there are factors alone, the second.
RATES = ((1e-2, 5e-4), (1e-2, 1e-3), (1e-2, 2e-3))
PAPER_RATES = ((2e-5, 2e-5), (1e-3, 1e-3), (4e-3, 4e-3))
DEFAULT = "basel"
# Name -> settings of Basel, or of the low-rank directory that is trained in its place.
METHODS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    # Its 32 new bases are more than small matrices can have, its 100 events more than there are steps.
    "basel, as published": {"preset": "paper", "extra_rank": 1, "prune_events": 30},
    "lowrank": {"low": {}},
    "SVD, uniform": {"low": {"method": "plain", "allocation": "uniform"}},
    "whitened, uniform": {"low": {"method": "whitened", "allocation": "uniform"}},
}
MORE_METHODS: dict[str, dict[str, Any]] = {
    "FWSVD, uniform": {"low": {"method": "fwsvd", "allocation": "uniform"}},
    "magnitude pruning": {"pruned": True},
    "whole numbers": {"whole": True},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "importance taylor": {"importance": "taylor"},
    "importance sigma": {"importance": "sigma"},
    "importance bsi": {"importance": "bsi"},
    "basis whitened": {"basis": "whitened"},
    "learn roots": {"learn": "roots", "rate": 1e-3},
    "events 1": {"prune_events": 1},
    "events 10": {"prune_events": 10},
    "events 60": {"prune_events": 60},
    "extra rank 0": {"extra_rank": 0},
    "extra rank 8": {"extra_rank": 8},
    "part 1 longer": {"epochs": "2,2,2"},
    "part 2 alone is short": {"epochs": "2,3,1"},
    "part 2 longer": {"epochs": "0,1,5"},
    "part 2 off": {"epochs": "2,4,0"},
    "rate 3e-3": {"rate": 3e-3},
    "rate 3e-2": {"rate": 3e-2},
    "factor rate 4e-3": {"factor_rate": 4e-3},
    "L1 0.01": {"l1": 0.01},
    "L1 0.1": {"l1": 0.1},
    "KL": {"loss": "kl"},
    "beside": {"beside": True},
    "100 rows": {"rows_of_data": 100},
    "300 rows": {"rows_of_data": 300},
    "3,600 rows": {"rows_of_data": 3600},
}


@dataclass(frozen=True)
class Task:
    """Rows to learn, questions to answer, what the task does not ask for, and text to calibrate on."""

    model: Path
    learnt: Path
    asked: Path
    other: Path
    text: Path
    context: int


def demo_task(skills: Sequence[str], scratch: Path, rows: int) -> Task:
    """New rows of some of the demo's skills, or of all, and its own questions on them."""
    script = demo_script()
    questions = read_lines(DEMO / "data" / "questions.jsonl")
    asked = [row for row in questions if not skills or row["skill"] in skills]
    other = [row for row in questions if skills and row["skill"] not in skills]
    per_skill = rows // (len(skills) or 5)
    learnt = [
        row
        for row in script.distinct(script.stories(77, held_out=False), per_skill)
        if not skills or row.skill in skills
    ]
    task = _task(DEMO / "model", scratch, 64)
    write_lines(task.learnt, [{"prompt": r.prompt, "answer": r.answer, "group": r.group} for r in learnt])
    write_lines(task.asked, [{key: row[key] for key in ("prompt", "answer", "group")} for row in asked])
    write_lines(task.other, [{key: row[key] for key in ("prompt", "answer", "group")} for row in other])
    write_lines(task.text, [{"text": row.text} for row in learnt])
    return task


def file_task(name: str, options: argparse.Namespace, scratch: Path, rows: int) -> Task:
    """Rows of a model and data of the user's: DATA/train.jsonl, DATA/test.jsonl and TEXT."""
    task = _task(options.zoo / name, scratch, 256)
    learnt = read_lines(options.data / "train.jsonl")[:rows]
    write_lines(task.learnt, [{"prompt": row["prompt"], "answer": row["answer"]} for row in learnt])
    asked = read_lines(options.data / "test.jsonl")[: options.questions]
    write_lines(task.asked, [{"prompt": row["prompt"], "answer": row["answer"]} for row in asked])
    write_lines(task.text, [{"text": row["prompt"] + row["answer"]} for row in learnt])
    write_lines(task.other, [] if options.text is None else read_lines(options.text)[:40])
    return task


def _task(model: Path, scratch: Path, context: int) -> Task:
    scratch.mkdir(parents=True, exist_ok=True)
    names = (scratch / f"{name}.jsonl" for name in ("train", "asked", "other", "text"))
    return Task(model, *names, context)


@dataclass(frozen=True)
class Case:
    """One training run."""

    task: str
    keep: float
    method: str
    rates: tuple[float, float] | None
    seed: int
    epochs: str
    rows: int = ROWS

    @property
    def key(self) -> list[Any]:
        rows = [] if self.rows == ROWS else [self.rows]
        return [self.task, self.keep, self.method, self.rates, self.seed, self.epochs, *rows]


class Bench:
    """Runs, each done once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.journal = options, Journal(options.journal)
        self.methods = {**METHODS, **MORE_METHODS, **ABLATIONS}

    def __call__(self, case: Case) -> dict[str, Any]:
        found: dict[str, Any] = self.journal.once(case.key, lambda: self._told(case))
        return found

    def _told(self, case: Case) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = self._run(case, Path(folder))
        print(f"  {json.dumps(case.key)}: {_short(found)}", file=sys.stderr, flush=True)
        return found

    def _run(self, case: Case, folder: Path) -> dict[str, Any]:
        settings = dict(self.methods[case.method])
        rows = settings.pop("rows_of_data", case.rows)
        task = self.task(case.task, folder / "task", rows)
        out = folder / "out"
        if settings.pop("whole", False):
            return _whole_numbers(task, case.keep, out)
        given: dict[str, Any] = {
            "data": task.learnt,
            "epochs": settings.pop("epochs", case.epochs),
            "steps": SHORT_STEPS if case.epochs == SHORT else STEPS,
            "seed": case.seed,
            "rows": ROWS_A_STEP,
        }
        given["context"] = task.context
        if case.rates is not None:
            given["rate"], given["factor_rate"] = case.rates
        if (low := settings.pop("low", None)) is not None:
            config = kanna.LowRankConfig(keep=case.keep, tokens=8192, context=task.context, align=1, **low)
            kanna.lowrank(task.model, folder / "low", config, calibration=task.text)
            given["start"] = folder / "low"
        else:
            given["keep"] = case.keep
        cpu = time.process_time()
        if settings.pop("pruned", False):
            config = kanna.BaselConfig(**{**given, "rate": given["factor_rate"]})
            loss, kept = pruned(task.model, config, case.keep, out)
        else:
            found = kanna.basel(task.model, out, kanna.BaselConfig(**{**given, **settings})).figures
            loss, kept = found["validation_loss"], found["keep_selected"]
        figures = {"loss": loss, "kept": kept, "steps": given["steps"], "cpu": time.process_time() - cpu}
        return figures if case.epochs == SHORT else figures | answers(out, task)

    def task(self, name: str, scratch: Path, rows: int) -> Task:
        if name in DEMO_SKILLS:
            return demo_task(DEMO_SKILLS[name], scratch, rows)
        return file_task(name, self.options, scratch, rows)

    def rates(self, task: str, method: str) -> tuple[float, float] | None:
        """The best of three after half as many steps at the first share, on held-out rows; None untrained."""
        keep = self.options.keep[0]
        known = self.methods[method]
        if known.get("whole"):
            return None
        some = PAPER_RATES if known.get("preset") else RATES
        rows = self.options.rows
        return min(some, key=lambda rates: self(Case(task, keep, method, rates, 0, SHORT, rows))["loss"])


def _whole_numbers(task: Task, keep: float, out: Path) -> dict[str, Any]:
    """Nearly as many bytes, without training: bits are the share of 16, from 2 to 8."""
    bits = min(8, max(2, round(16 * keep)))
    cpu = time.process_time()
    config = kanna.QuantizeConfig(bits=bits, group="64", context=task.context, tokens=8192)
    figures = kanna.quantize(task.model, out, config, calibration=task.text).figures
    kept = figures["bits_a_weight"] / 16
    return {"kept": kept, "cpu": time.process_time() - cpu, "loss": float("nan"), **answers(out, task)}


def answers(model: Path, task: Task) -> dict[str, Any]:
    """What a model says to the questions, and how sure it is of the right answers, there and elsewhere."""
    options = functools.partial(kanna.EvalOptions, context=task.context)
    exact = kanna.evaluate(model, [task.asked], options(metric="exact")).scores[0]
    loss = kanna.evaluate(model, [task.asked], options(metric="log_loss")).scores[0]
    found = {
        "hits": "".join(str(int(bool(record.right))) for record in exact.records),
        "log_loss": loss.value,
    }
    if task.other.stat().st_size:
        about_text = "text" in json.loads(task.other.open().readline())
        metric = "log_loss_per_token" if about_text else "log_loss"
        found["other"] = kanna.evaluate(model, [task.other], options(metric=metric)).scores[0].value
    return found


def _short(found: Mapping[str, Any]) -> str:
    right = found.get("hits")
    said = "" if right is None else f"{right.count('1') / len(right):.3f} right, "
    return f"{said}loss {found['loss']:.3f}, {found['cpu']:.0f} s of CPU"


def _hits(found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[int(mark) for mark in run["hits"]] for run in found], dtype=float)


def table(
    bench: Bench, task: str, keep: float, methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[str]:
    """The rows of one table, as they are done."""
    with tempfile.TemporaryDirectory() as folder:
        before_task = bench.task(task, Path(folder), bench.options.rows)
        before = answers(before_task.model, before_task)
    other = f", elsewhere {before['other']:.2f}" if "other" in before else ""
    right = _hits([before]).mean()
    yield f"\n{task}, keep {keep:g}: before {right:.1%} right, loss {before['log_loss']:.3f}{other}"
    yield "| | kept | right | difference to basel (95 %) | loss | elsewhere | rates | CPU s |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|"
    base = None
    for method in methods:
        rates = bench.rates(task, method) if methods is not ABLATIONS else None
        runs = [bench(Case(task, keep, method, rates, seed, EPOCHS, bench.options.rows)) for seed in seeds]
        hits = _hits(runs)
        base = hits if base is None else base
        mean, low, high = interval(hits, base)
        away = "" if method == DEFAULT else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        elsewhere = f"{fmean(run['other'] for run in runs):.2f}" if "other" in runs[0] else ""
        yield (
            f"| {method} | {fmean(run['kept'] for run in runs):.3f} | {hits.mean():.1%} | {away} | "
            f"{fmean(run['log_loss'] for run in runs):.3f} | {elsewhere} | "
            f"{'as they come' if rates is None else '{:g}, {:g}'.format(*rates)} | "
            f"{fmean(run['cpu'] for run in runs):.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(DEMO_SKILLS))
    parser.add_argument("--keep", nargs="+", type=float, default=[0.25, 0.15])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *MORE_METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=ROWS, help="of data, a tenth of them held out")
    parser.add_argument("--full", action="store_true", help="keep 0.75 and 0.5 and more methods, too")
    parser.add_argument("--ablations", action="store_true", help="parts of the method, at default rates")
    parser.add_argument("--zoo", type=Path, help="folder of models named as in --tasks")
    parser.add_argument("--data", type=Path, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--text", type=Path, help="text that the task does not ask for, JSON lines")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--journal", type=Path, default=Path("basel_quality.jsonl"))
    options = parser.parse_args()
    bench = Bench(options)
    more = [*options.methods, *(MORE_METHODS if options.full else ())]
    methods: Any = ABLATIONS if options.ablations else list(dict.fromkeys(more))
    for task in options.tasks:
        for keep in (*([0.75, 0.5] if options.full else []), *options.keep):
            for line in table(bench, task, keep, methods, options.seeds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
