"""What scales can learn: repairing a rough rounding, taking up a task, and what each setting is worth.

    python benchmarks/peqa_quality.py                                   the shipped model: all three parts
    python benchmarks/peqa_quality.py --parts repair --model DIR --data DIR --seeds 0       another model
    python benchmarks/peqa_quality.py --parts repair --model DIR --texts LEARNT ASKED --bits 3 --group 64 \\
        --loss kl --steps 60 --seeds 0                                  on plain text, taught by the model
    python benchmarks/peqa_quality.py --parts adapt --model DIR --data DIR --text FILE --group 64 --seeds 0
    python benchmarks/peqa_quality.py --full                            more rates and sizes

Each finished run is a line of --journal and not done again: a killed one goes on, more --seeds are added.

repair     a model at 2 bits, quantised by minmax and by gptq (anchored and refitted), then tuned. The share
           recovered is (quantised - tuned) / (quantised - dense) of the loss per answer.
adapt      what the model does not know: the drawers of the shipped model's workshop after somebody moved all
           tools (learnt in four wordings, asked in three others), or --data. Beside scales: LoRA of PEFT on
           the same whole numbers (multiplied out, as PEFT does not know them), by the same trainer on the
           same batches, and that LoRA merged and rounded as the base was.
ablations  one thing changed at a time, in the repair of minmax. Zero-points and all weights are no modes of
           kanna: the script trains them (weights through the rounding, straight through, in float32).

Intervals are paired, 95 %, over questions drawn anew; all figures are means over seeds.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from transformers.utils.logging import disable_progress_bar

import kanna
from journalled import Journal, interval
from peqa_beside import learn
from peqa_tasks import Task, answers, demo_moved, demo_repair, own_task

PARTS = ("repair", "adapt", "ablations")
ROWS, ADAPTED_ROWS = 600, 2000
CODES: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "gptq": {"method": "gptq", "inputs": "anchored", "refit": True},
}


@dataclass(frozen=True)
class Way:
    """How a row of a table comes about.

    Args:
        how: tune, or what `peqa_beside.learn` knows.
        given: To the configuration of `kanna tune`.
        codes: To that of `kanna quantize`, where it is another one.
        rows: Of data.
    """

    how: str = "tune"
    given: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, Any] = field(default_factory=dict)
    rows: int = ROWS


def tuned(granularity: str, rate: float = 0.01, **more: Any) -> Way:
    return Way(given={"granularity": granularity, "rate": rate, **more})


REPAIRED = {"channel": tuned("channel"), "group": tuned("group")}
ADAPTED = {
    "channel, rate 0.01": tuned("channel"),
    "channel, rate 0.05": tuned("channel", 0.05),
    "group, rate 0.01": tuned("group"),
    "LoRA": Way("lora"),
    "channel, rate 0.05, replay": tuned("channel", 0.05, replay=True),
}
ADAPTED_MORE = {
    "channel, rate 0.02": tuned("channel", 0.02),
    "group, rate 0.02": tuned("group", 0.02),
    "group, rate 0.01, replay": tuned("group", replay=True),
}
ABLATIONS = {
    "default: group 32, channel, rate 0.01, 600 rows": tuned("channel"),
    "scales of groups": tuned("group"),
    "codes in groups of 64": Way(codes={"group": "64"}),
    "codes in groups of 64, scales of groups": Way(given={"granularity": "group"}, codes={"group": "64"}),
    "codes with one scale a row": Way(codes={"group": "channel"}),
    "zero-points only": Way("zeros"),
    "zero-points only, rate 0.001": Way("zeros", {"rate": 0.001}),
    "rate 0.001": tuned("channel", 0.001),
    "rate 0.003": tuned("channel", 0.003),
    "rate 0.03": tuned("channel", 0.03),
    "rate 0.1": tuned("channel", 0.1),
    "100 rows": Way(rows=100),
    "300 rows": Way(rows=300),
    "three times the steps": tuned("channel", steps_times=3),
    "KL to the model before": tuned("channel", loss="kl"),
    "all weights, rate 0.001 (upper bound)": Way("weights", {"rate": 0.001}),
    "all weights, rate 0.003 (upper bound)": Way("weights", {"rate": 0.003}),
}


class Bench:
    """Runs, each done once; quantised models are made where they are needed."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.journal = Journal(options.journal)
        self.made: dict[str, Path] = {}

    def task(self, part: str, rows: int = ROWS) -> Task:
        folder = self.scratch / f"{part}-{rows}"
        folder.mkdir(exist_ok=True)
        if self.options.model is not None:
            return own_task(self.options, folder, rows)
        return demo_moved(folder) if part == "adapt" else demo_repair(folder, rows)

    def key(self, part: str, *more: Any) -> list[Any]:
        o = self.options
        name = "demo" if o.model is None else str(o.model)
        asked = [str(path) for path in (o.data, *(o.texts or ()), o.text) if path is not None]
        return [part, name, asked, o.questions, *more]

    def dense(self, part: str) -> dict[str, Any]:
        task = self.task(part)
        found: dict[str, Any] = self.journal.once(self.key(part, "dense"), lambda: answers(task.model, task))
        return found

    def quantised(self, part: str, codes: Mapping[str, Any]) -> dict[str, Any]:
        task = self.task(part)
        key = self.key(part, "quantised", sorted(codes.items()))
        found: dict[str, Any] = self.journal.once(key, lambda: answers(self.base(task, codes), task))
        return found

    def base(self, task: Task, codes: Mapping[str, Any], model: Path | None = None) -> Path:
        """A quantised model, made once in this process."""
        name = repr((str(model or task.model), sorted(codes.items())))
        if name not in self.made:
            out = Path(tempfile.mkdtemp(dir=self.scratch)) / "base"
            config = kanna.QuantizeConfig(context=task.context, tokens=8192, **codes)
            text = task.calibration if codes["method"] == "gptq" else None
            kanna.quantize(model or task.model, out, config, calibration=text)
            self.made[name] = out
        return self.made[name]

    def run(self, part: str, codes: Mapping[str, Any], way: Way, seed: int) -> dict[str, Any]:
        """What came of one way."""
        codes = {**codes, **way.codes}
        given = {**self.defaults(part, way), **way.given}
        key = self.key(part, sorted(codes.items()), way.how, way.rows, sorted(given.items()), seed)
        found: dict[str, Any] = self.journal.once(key, lambda: self._run(part, codes, way, given, seed))
        return found

    def defaults(self, part: str, way: Way) -> dict[str, Any]:
        """Of `kanna tune`."""
        o = self.options
        rate = o.lora_rate if way.how == "lora" else 0.01
        steps = o.adapt_steps if part == "adapt" else o.steps
        rank = {"rank": o.lora_rank} if way.how == "lora" else {}
        loss = "ce" if part == "adapt" else o.loss
        return {"steps": steps, "rows": o.rows, "rate": rate, "loss": loss, "replay": False, **rank}

    def _run(
        self, part: str, codes: Mapping[str, Any], way: Way, given: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        task = self.task(part, way.rows if part != "adapt" else ADAPTED_ROWS)
        base, settings = self.base(task, codes), dict(given)
        rank = settings.pop("rank", 0)
        settings["steps"] *= settings.pop("steps_times", 1)
        settings["replay"] = task.replay if settings["replay"] else None
        config = kanna.TuneConfig(
            data=task.learnt,
            name="tuned",
            validation=task.held,
            context=task.context,
            seed=seed,
            teacher=task.model if settings["loss"] == "kl" else None,
            **settings,
        )
        cpu = time.process_time()
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            out = Path(folder) / "out"
            if way.how == "tune":
                figures = kanna.tune(base, config, out=out).figures
                numbers, loss = figures["trainable"], figures["held_out_loss_after"]
            else:
                made = learn(way.how, base, task.model, config, rank, out)
                numbers, loss = made.numbers, made.loss
            learning = time.process_time() - cpu
            found = {"numbers": numbers, "held": loss, "cpu": learning, **answers(out, task)}
            if way.how == "lora":
                found["rounded"] = answers(self.base(task, codes, out), task)
                self.made.popitem()  # of a directory that goes away
        print(f"  {part}: {way.how} {given}, seed {seed}: {short(found)}", file=sys.stderr, flush=True)
        return found


def short(found: Mapping[str, Any]) -> str:
    said = f"{right(found):.1%} right, " if "hits" in found else ""
    return f"{said}loss {fmean(found['losses']):.4f}, {found['cpu']:.0f} s of CPU"


def right(found: Mapping[str, Any], name: str = "hits") -> float:
    return float(found[name].count("1") / len(found[name]))


def hits(runs: Sequence[Mapping[str, Any]], name: str = "hits") -> np.ndarray:
    return np.array([[int(mark) for mark in run[name]] for run in runs], dtype=float)


def losses(runs: Sequence[Mapping[str, Any]], name: str = "losses") -> np.ndarray:
    return np.array([run[name] for run in runs])


def percent(told: tuple[float, float, float]) -> str:
    return "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * value for value in told))


def points(told: tuple[float, float, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in told))


def nats(told: tuple[float, float, float]) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*told)


def standing(name: str, found: Mapping[str, Any]) -> str:
    said = f"{right(found):.1%} right, " if "hits" in found else ""
    return f"{name}: {said}loss {fmean(found['losses']):.4f}{elsewhere([found])}"


def elsewhere(runs: Sequence[Mapping[str, Any]]) -> str:
    """Other skills, and general text."""
    said = ""
    if "other_hits" in runs[0]:
        kept, loss = hits(runs, "other_hits").mean(), losses(runs, "other_losses").mean()
        said = f"; other skills {kept:.1%} right, loss {loss:.3f}"
    if "text_loss" in runs[0]:
        said += f"; general text {fmean(run['text_loss'] for run in runs):.3f} nats a token"
    return said


def codes_of(options: argparse.Namespace, part: str, method: str) -> dict[str, Any]:
    bits = options.adapt_bits if part == "adapt" else options.bits
    return {"bits": bits, "group": options.group, **CODES[method]}


def repaired(
    bench: Bench, part: str, codes: Mapping[str, Any], ways: Mapping[str, Way], seeds: Sequence[int]
) -> Iterator[str]:
    """A table of what scales repair; the first lines say what was lost."""
    dense = bench.dense(part)
    yield f"\n{part}: {codes['bits']} bits, group {codes['group']}, codes by {codes['method']}"
    yield standing("as it was", dense)
    yield (
        "| | quantised | tuned: right | to quantised (95 %) | log-loss | to quantised (95 %) | recovered | "
        "numbers | CPU s |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, way in ways.items():
        before = bench.quantised(part, {**codes, **way.codes})
        runs = [bench.run(part, codes, way, seed) for seed in seeds]
        lost = losses([before]), losses(runs)
        share = interval(lost[0], lost[1], of=(lost[0] - losses([dense]))[0])
        said = moved = ""
        if "hits" in before:
            said, moved = f"{hits(runs).mean():.1%}", points(interval(hits(runs), hits([before])))
        was = f"{right(before):.1%}, " if "hits" in before else ""
        yield (
            f"| {name} | {was}{lost[0].mean():.3f} | {said} | {moved} | {lost[1].mean():.4f} | "
            f"{nats(interval(lost[1], lost[0]))} | {percent(share)} | {runs[0]['numbers']:,} | "
            f"{fmean(run['cpu'] for run in runs):.0f} |"
        )


def adapted(bench: Bench, ways: Mapping[str, Way], seeds: Sequence[int]) -> Iterator[str]:
    """A table of what a task gains, and what else loses by it."""
    codes = codes_of(bench.options, "adapt", "minmax")
    before = bench.quantised("adapt", codes)
    yield f"\nadapt: {codes['bits']} bits, group {codes['group']}, codes by {codes['method']}"
    yield standing("as it was", bench.dense("adapt"))
    yield standing("quantised", before)
    yield "| | log-likelihood gained | of LoRA's (95 %) | right | elsewhere | numbers | CPU s |"
    yield "|---|---:|---:|---:|---|---:|---:|"
    lora = [bench.run("adapt", codes, ways["LoRA"], seed) for seed in seeds]
    gained = losses([before])[0] - losses(lora).mean(0)
    for name, way in ways.items():
        runs = [bench.run("adapt", codes, way, seed) for seed in seeds]
        yield _adapted(name, before, runs, gained, runs)
        if way.how == "lora":
            rounded = [run["rounded"] for run in runs]
            yield _adapted("LoRA, merged and rounded", before, rounded, gained, runs)


def _adapted(
    name: str,
    before: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    gained: np.ndarray,
    runs: Sequence[Mapping[str, Any]],
) -> str:
    lost, share = losses(found), interval(losses([before]), losses(found), of=gained)
    said = f"{hits(found).mean():.1%}" if "hits" in before else ""
    return (
        f"| {name} | {losses([before]).mean() - lost.mean():.3f} | {percent(share)} | {said} | "
        f"{elsewhere(found).removeprefix('; ')} | {runs[0]['numbers']:,} | "
        f"{fmean(run['cpu'] for run in runs):.0f} |"
    )


def lines(bench: Bench) -> Iterator[str]:
    """All tables."""
    options = bench.options
    for part in options.parts:
        if part == "repair":
            for method in options.codes:
                codes = codes_of(options, part, method)
                yield from repaired(bench, part, codes, REPAIRED, options.seeds)
        elif part == "adapt":
            more = ADAPTED_MORE if options.full else {}
            can = {
                name: way
                for name, way in {**ADAPTED, **more}.items()
                if options.replay is not None or options.model is None or not way.given.get("replay")
            }
            yield from adapted(bench, can, options.seeds)
        elif options.model is None:
            codes, seeds = (
                codes_of(options, part, "minmax"),
                options.seeds if options.full else options.seeds[:1],
            )
            yield from repaired(bench, part, codes, ABLATIONS, seeds)
    if options.full and "repair" in options.parts and options.model is None:
        for bits, group in ((3, "32"), (3, "channel"), (2, "64"), (2, "channel")):
            for method in options.codes:
                codes = {"bits": bits, "group": group, **CODES[method]}
                yield from repaired(bench, "repair", codes, REPAIRED, options.seeds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--model", type=Path, help="a dense model; by default the one that is shipped")
    parser.add_argument("--data", type=Path, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--texts", type=Path, nargs=2, help="text to learn from, and text to be judged on")
    parser.add_argument("--text", type=Path, help="general text, of which the loss is told")
    parser.add_argument("--replay", type=Path, help="general text that must not be forgotten")
    parser.add_argument("--calibration", type=Path, help="of gptq; by default what is learnt")
    parser.add_argument("--codes", nargs="+", default=list(CODES), choices=list(CODES))
    parser.add_argument("--bits", type=int, default=2, help="of repair and ablations")
    parser.add_argument("--adapt-bits", type=int, default=4)
    parser.add_argument("--group", default="32")
    parser.add_argument("--loss", choices=("ce", "kl"), default="ce", help="of repair")
    parser.add_argument("--steps", type=int, default=100, help="of repair and ablations")
    parser.add_argument("--adapt-steps", type=int, default=120)
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    parser.add_argument("--lora-rate", type=float, default=5e-3)
    parser.add_argument("--lora-rank", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=300, help="of --data or --texts, at most")
    parser.add_argument("--context", type=int, default=256, help="of --model")
    parser.add_argument("--full", action="store_true", help="more rates, sizes and seeds")
    parser.add_argument("--journal", type=Path, default=Path("peqa_quality.jsonl"))
    options = parser.parse_args()
    if options.model is not None and options.data is None and options.texts is None:
        parser.error("--model wants --data or --texts")
    return options


def main() -> None:
    options = arguments()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(Bench(options, Path(folder))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
