"""Merges of two or more experts by everything that there is, on rows that chose nothing.

    python benchmarks/merge_quality.py --base DIR --expert math=DIR --expert facts=DIR \\
        --task math=math.jsonl --task facts=facts.jsonl --text prose.jsonl --context 256 --journal runs.jsonl

Of each task a fifth of the rows chooses (calibration), others judge, parted anew for each of --seeds. All
tuned rows have about --evaluations evaluations of a task: one lambda, a weight for each expert (two experts
only), TIES and DARE over density and lambda, layer swapping (Bandarkar et al. 2024, arXiv 2410.01335: the
first and the last layers of one expert, whole, around those of the other, without a transition zone; two
experts only), Hi-Merging by model, by layer and both, and two controls that set a weight for each expert in
each block: at random, and greedily. Untuned rows are the methods as published, the mean of the experts, and
Hi-Merging without tasks.
With --train NAME=FILE for every expert one more row is the base trained on all these rows at once.
--choices NAME turns the answers of a task into choices: the right one among nine others of rows with the same
`relation`.

Told are, on the test rows, the score of each task, the mean normalised score ((P - base) / (expert - base))
with its difference from one tuned lambda (95 %, questions drawn anew), the worst task, perplexity of --text,
the mean rank over tasks, evaluations and seconds of processor time until the model is there. Each finished
run is a line of --journal and is not done again; after --minutes no further one is begun.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

import kanna
from journalled import Journal, read_lines, write_lines
from kanna.methods.merge.hi.asked import asked_for, ground_of, mixing_of, opened
from kanna.methods.merge.hi.ground import mean_normalised
from kanna.methods.merge.hi.merges import Merges, Mixing
from kanna.methods.merge.hi.state import GONE, WHOLE, State, Treatment, everywhere
from kanna.methods.merge.tuning.endpoints import MERGE, ends
from kanna.methods.merge.tuning.evaluating import Evaluator
from kanna.methods.merge.tuning.samples import Notebook
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_rows
from mixed_tuning import fine_tuned

_SHARE, _OTHERS, _DRAWS, _RATE = 0.2, 9, 10_000, 5e-4
TUNED_LAMBDA = "task_arithmetic, lambda tuned"


@dataclass(frozen=True)
class Given:
    """What is merged and asked.

    Args:
        base: A model.
        experts: Name -> model.
        tasks: Name of an expert -> file.
        budget: Evaluations of a task, about, for each tuned row.
        train: Name of an expert -> rows to train on; none leaves fine-tuning out.
        steps: Of that, of 32 rows.
        options: How rows that judge are scored.
        choosing: The same of rows that choose.
        only: Parts of the names of rows of the table; none for all of them.
    """

    base: str
    experts: dict[str, str]
    tasks: dict[str, Path]
    text: Path | None
    options: kanna.EvalOptions
    budget: int
    room: Path
    train: dict[str, Path]
    steps: int
    choosing: kanna.EvalOptions
    only: tuple[str, ...] = ()

    @property
    def merges(self) -> int:
        """Merges that are scored on all tasks."""
        return max(1, self.budget // len(self.tasks))

    @property
    def grid(self) -> tuple[int, int]:
        """Values of two numbers, so that all pairs are about as many merges."""
        first = max(1, int(self.merges**0.5))
        return first, self.merges // first

    def recipe(self, method: str, weights: Any = 1.0, **parameters: Any) -> dict[str, Any]:
        beside = {"weight": weights} if weights is not None else {}
        models = [{"model": model, "parameters": dict(beside)} for model in self.experts.values()]
        made = {"merge_method": method, "models": models, "parameters": parameters}
        return made if method == "linear" else {**made, "base_model": self.base}


@dataclass(frozen=True)
class Made:
    """A merge.

    Args:
        place: Its directory, or a model that is there already.
        evaluations: Of a task, that choosing it took.
    """

    place: str
    evaluations: int = 0


Row = Callable[[Given, int, Path], Made]


def untuned(method: str, weights: Any = 1.0, **parameters: Any) -> Row:
    def make(given: Given, seed: int, out: Path) -> Made:
        kanna.merge(given.recipe(method, weights, **parameters), out)
        return Made(str(out))

    return make


def swept(method: str, *axes: tuple[str, float, float], **parameters: Any) -> Row:
    """Tuned over one or two numbers, each from and to, in equal steps."""

    def make(given: Given, seed: int, out: Path) -> Made:
        counts = (given.merges,) if len(axes) == 1 else given.grid
        vary = [
            f"{name}={','.join(f'{x:.4g}' for x in np.linspace(a, b, count))}"
            for (name, a, b), count in zip(axes, counts, strict=True)
        ]
        found = kanna.merge_sweep(
            given.recipe(method, **parameters), vary, given.tasks, out,
            calibration_share=_SHARE, split_seed=seed, evaluation=given.choosing,
        )  # fmt: skip
        assert found.sweep is not None
        return Made(str(out), found.sweep.evaluations)

    return make


def per_expert(given: Given, seed: int, out: Path) -> Made:
    names = [f"weight@{Path(model.rpartition('+')[2]).name}" for model in given.experts.values()]
    return swept("task_arithmetic", *((name, 0.2, 1.2) for name in names))(given, seed, out)


def hi(stages: str) -> Row:
    def make(given: Given, seed: int, out: Path) -> Made:
        many = [",".join(f"{x:.3g}" for x in np.linspace(1 / each, 1, each)) for each in given.grid]
        grids = {"both": ["0.3,0.6,1"] * 2, "model": many}.get(stages)
        tried = {} if grids is None else dict(zip(("p", "s"), grids, strict=True))
        options = kanna.HiOptions(stages=stages, share=_SHARE, split_seed=seed, rounds=1, **tried)
        found = kanna.merge_hi(
            given.base, given.experts, given.tasks, out, options, evaluation=given.choosing
        )
        assert found.outcome is not None
        return Made(str(out), found.outcome.evaluations)

    return make


def by_signs(given: Given, seed: int, out: Path) -> Made:
    """Hi-Merging that asks no task, which is not the paper's."""
    kanna.merge_hi(given.base, given.experts, {}, out, kanna.HiOptions(data_free=True))
    return Made(str(out))


def controlled(search: Callable[[Merges, int, random.Random], State]) -> Row:
    """A weight for each expert in each block, found by a search."""

    def make(given: Given, seed: int, out: Path) -> Made:
        options = kanna.HiOptions(stages="layer", share=_SHARE, split_seed=seed)
        asked = asked_for(
            given.base, given.experts, given.tasks, {}, options, given.choosing, None, 2 * 10**9, None
        )
        with opened(asked) as found:
            evaluator = Evaluator(asked.tasks, asked.evaluation, Notebook(None))
            scales, _ = ends(asked.tasks, found, evaluator, lambda *_: None)
            mixing: Mixing = mixing_of(asked, scales)
            ground = ground_of(asked, mixing, scales, found[MERGE], evaluator, given.room)
            state = search(ground, given.merges, random.Random(seed))
            kanna.merge(mixing.recipe(state), out)
        return Made(str(out), evaluator.done)

    return make


def at_random(ground: Merges, merges: int, draw: random.Random) -> State:
    experts, blocks = len(ground.experts), len(ground.blocks)
    drawn = [
        State(tuple(tuple(_weight(draw.uniform(0, 1.2)) for _ in range(experts)) for _ in range(blocks)))
        for _ in range(merges)
    ]
    return max(drawn, key=lambda state: mean_normalised(ground, state))


def greedily(ground: Merges, merges: int, draw: random.Random) -> State:
    """One weight at a time, in a random order, is halved or taken half as large again if that is better."""
    state = everywhere([_weight(0.6)] * len(ground.experts), len(ground.blocks))
    score, left = mean_normalised(ground, state), merges - 1
    while left > 0:
        block, expert = draw.randrange(len(ground.blocks)), draw.randrange(len(ground.experts))
        for factor in (0.5, 1.5):
            row = list(state.rows[block])
            row[expert] = _weight(min(1.5, row[expert].scale * factor))
            tried = state.replaced(block, row)
            found, left = mean_normalised(ground, tried), left - 1
            if found > score:
                state, score = tried, found
                break
            if left <= 0:
                break
    return state


def swapped(ground: Merges, merges: int, draw: random.Random) -> State:
    """The best of two experts, one inside the other: which is outside, with how many blocks at either end."""
    count = len(ground.blocks)
    ways = [
        tuple(outer if place < below or place >= count - above else 1 - outer for place in range(count))
        for outside in range(count)
        for below in range(outside + 1)
        for above in [outside - below]
        for outer in (0, 1)
    ]
    states = [State(tuple((WHOLE, GONE) if one == 0 else (GONE, WHOLE) for one in way)) for way in ways]
    return max(states[:merges], key=lambda state: mean_normalised(ground, state))


def _weight(value: float) -> Treatment:
    return Treatment(1.0, round(value, 4))


UNTUNED: dict[str, Row] = {
    "mean of the experts": untuned("linear"),
    "task_arithmetic, lambda 1": untuned("task_arithmetic"),
    "ties, as published (density 0.2, lambda 1)": untuned("ties", density=0.2),
    "dare_linear, as published (density 0.2)": untuned("dare_linear", density=0.2),
    "della, density 0.5": untuned("della", density=0.5),
    "breadcrumbs, density 0.9": untuned("breadcrumbs", density=0.9),
    "model_stock": untuned("model_stock", None),
    "hi, data-free (not the paper)": by_signs,
}
TUNED: dict[str, Row] = {
    TUNED_LAMBDA: swept("task_arithmetic", ("lambda", 0.1, 1.2)),
    "task_arithmetic, weight per expert": per_expert,
    "ties, density and lambda tuned": swept("ties", ("density", 0.1, 1.0), ("lambda", 0.3, 1.5)),
    "dare_linear, density and lambda tuned": swept(
        "dare_linear", ("density", 0.1, 1.0), ("lambda", 0.3, 1.2)
    ),
    "layer swapping, which and how many tuned": controlled(swapped),
    "hi, model": hi("model"),
    "hi, layer": hi("layer"),
    "hi, both": hi("both"),
    "control: random weights by block": controlled(at_random),
    "control: greedy weights by block": controlled(greedily),
}

# Rows that know two experts only.
PAIRS = ("task_arithmetic, weight per expert", "layer swapping, which and how many tuned")


def mixed(given: Given, seed: int, out: Path) -> Made:
    """The base, trained on the rows of all tasks."""
    rows = [row for file in given.train.values() for row in read_lines(file)]
    tokens = fine_tuned(given.base, rows, out, given.steps, 32, _RATE, seed)
    print(f"{len(rows):,} rows, {given.steps:,} steps, {tokens:,} tokens", file=sys.stderr)
    return Made(str(out))


def scores(given: Given, model: str) -> dict[str, Any]:
    """Of every row of every task, and perplexity."""
    files = list(given.tasks.values())
    found = kanna.evaluate(model, files, given.options, fresh=True).scores
    told: dict[str, Any] = {
        name: [record.values[one.metric] for record in one.records]
        for name, one in zip(given.tasks, found, strict=True)
    }
    if given.text is not None:
        context = given.options.context
        text = kanna.evaluate_text(model, given.text, context=context, tokens=10_000)
        told["perplexity"] = text.result.perplexity
    return told


def place_of(given: Given, name: str) -> str:
    """A model that is there, or one that an adapter is merged into."""
    model = given.experts[name]
    if "+" not in model:
        return model
    out = given.room / f"expert-{name}"
    if not out.exists():
        kanna.merge(
            {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1}}]}, out
        )
    return str(out)


def run(given: Given, name: str, row: Row, seed: int) -> dict[str, Any]:
    out = given.room / "merged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(given.room / "merged.kanna-work", ignore_errors=True)
    began = time.process_time(), time.perf_counter()
    made = row(given, seed, out)
    took = {"cpu": time.process_time() - began[0], "seconds": time.perf_counter() - began[1]}
    return {**scores(given, made.place), "evaluations": made.evaluations, **took}


def judged_rows(given: Given, seed: int) -> dict[str, list[int]]:
    """Places of the test rows of each task."""
    return {name: split_rows(read_rows(file), _SHARE, seed)[1] for name, file in given.tasks.items()}


@dataclass(frozen=True)
class Line:
    """A row of the table; what is of rows is by seed.

    Args:
        values: By seed: name of a task -> place of a test row -> its score.
    """

    name: str
    values: list[dict[str, dict[int, float]]]
    perplexity: float | None
    evaluations: float
    seconds: float


def mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def normalised(line: Line, seed: int, ends_: Mapping[str, tuple[Line, Line]]) -> dict[str, float]:
    found = {}
    for task, values in line.values[seed].items():
        base, expert = (mean(one.values[seed][task]) for one in ends_[task])
        found[task] = (mean(values) - base) / (expert - base)
    return found


def against(line: Line, other: Line, ends_: Mapping[str, tuple[Line, Line]]) -> tuple[float, float, float]:
    """Difference of mean normalised scores, and its interval: questions of each task are drawn anew."""
    draws = np.random.default_rng(0)
    seeds = range(len(line.values))
    total, boots = 0.0, np.zeros(_DRAWS)
    for task in line.values[0]:
        sums: dict[int, float] = {}
        for seed in seeds:
            base, expert = (mean(one.values[seed][task]) for one in ends_[task])
            mine, theirs = line.values[seed][task], other.values[seed][task]
            for place, value in mine.items():
                share = (value - theirs[place]) / (expert - base) / len(mine) / len(line.values)
                sums[place] = sums.get(place, 0.0) + share
        questions = np.array(list(sums.values()))
        total += questions.sum() / len(ends_)
        drawn = draws.multinomial(len(questions), [1 / len(questions)] * len(questions), _DRAWS)
        boots += drawn @ questions / len(ends_)
    low, high = np.percentile(boots, [2.5, 97.5])
    return float(total), float(low), float(high)


def table(lines: Sequence[Line], ends_: Mapping[str, tuple[Line, Line]]) -> Iterator[str]:
    tasks = list(ends_)
    heads = " | ".join(tasks)
    columns = (
        "mean normalised | beside one tuned lambda | worst task | perplexity | rank | evaluations | CPU s"
    )
    yield f"| | {heads} | {columns} |"
    yield "|---|" + "---:|" * (len(tasks) + 7)
    base_line = next((line for line in lines if line.name == TUNED_LAMBDA), None)
    ranks = ranked(lines, tasks)
    for line in lines:
        seeds = range(len(line.values))
        shares = [normalised(line, seed, ends_) for seed in seeds]
        told = " | ".join(f"{np.mean([mean(line.values[s][t]) for s in seeds]):.1%}" for t in tasks)
        each = [sum(one.values()) / len(one) for one in shares]
        worst = np.mean([min(one.values()) for one in shares])
        beside = ""
        if base_line is not None and line is not base_line and len(base_line.values) >= len(line.values):
            difference, low, high = against(line, base_line, ends_)
            beside = f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        text = "" if line.perplexity is None else f"{line.perplexity:.1f}"
        yield (
            f"| {line.name} | {told} | {np.mean(each):.1%} | {beside} | {worst:.1%} | {text} | "
            f"{ranks[line.name]:.1f} | {line.evaluations:.0f} | {line.seconds:.0f} |"
        )


def ranked(lines: Sequence[Line], tasks: Sequence[str]) -> dict[str, float]:
    """Mean rank over tasks, 1 the best; equal ones share theirs."""
    found = {line.name: 0.0 for line in lines}
    for task in tasks:
        values = {line.name: float(np.mean([mean(one[task]) for one in line.values])) for line in lines}
        for name, value in values.items():
            above = sum(other > value for other in values.values())
            same = sum(other == value for other in values.values())
            found[name] += (above + (same + 1) / 2) / len(tasks)
    return found


def as_choices(file: Path, out: Path) -> Path:
    """Rows whose answer is to be chosen among others of the same relation."""
    rows, draw = read_lines(file), random.Random(0)
    answers: dict[Any, set[str]] = {}
    for row in rows:
        answers.setdefault(row.get("relation"), set()).add(row["answer"])
    made = []
    for row in rows:
        others = sorted(answers[row.get("relation")] - {row["answer"]})
        if len(others) < _OTHERS:
            continue
        choices = [row["answer"], *draw.sample(others, _OTHERS)]
        draw.shuffle(choices)
        label = choices.index(row["answer"])
        kept = {key: value for key, value in row.items() if key != "answer"}
        made.append({**kept, "choices": choices, "label": label})
    return write_lines(out, made)


def line_of(given: Given, name: str, found: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Line:
    values = []
    for seed, one in zip(seeds, found, strict=True):
        places = judged_rows(given, seed)
        values.append({task: {place: one[task][place] for place in places[task]} for task in given.tasks})
    number = len(found)
    perplexities = [one["perplexity"] for one in found if "perplexity" in one]
    return Line(
        name, values, sum(perplexities) / number if perplexities else None,
        sum(one.get("evaluations", 0) for one in found) / number,
        sum(one.get("cpu", 0) for one in found) / number,
    )  # fmt: skip


def measured(
    given: Given, journal: Journal, seeds: Sequence[int], minutes: float
) -> Iterator[tuple[str, int, Any]]:
    """(row, seed, what it scored) of all that is there or was done in time."""
    until = time.monotonic() + 60 * minutes
    key = [given.base, *given.experts.values(), *(str(file) for file in given.tasks.values()), given.budget]

    ends_there = {"base", *(f"expert {expert}" for expert in given.experts)}

    def once(name: str, seed: int, compute: Callable[[], Any]) -> Iterator[tuple[str, int, Any]]:
        if name not in ends_there and given.only and not any(part in name for part in given.only):
            return
        told = [*key, name, seed]
        if json.dumps(told) in journal.done or time.monotonic() < until:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            yield name, seed, journal.once(told, compute)

    yield from once("base", -1, lambda: scores(given, given.base))
    for expert in given.experts:
        yield from once(f"expert {expert}", -1, lambda expert=expert: scores(given, place_of(given, expert)))
    for name, row in UNTUNED.items():
        yield from once(name, -1, lambda name=name, row=row: run(given, name, row, 0))
    if given.train:
        steps = f"fine-tuned on all rows, {given.steps} steps"
        yield from once(steps, -1, lambda: run(given, steps, mixed, 0))
    for seed in seeds:
        for name, row in TUNED.items():
            if name in PAIRS and len(given.experts) != 2:
                continue
            yield from once(name, seed, lambda name=name, row=row, seed=seed: run(given, name, row, seed))


def lines_of(given: Given, found: Sequence[tuple[str, int, Any]]) -> list[Line]:
    """Rows of which every seed is there; those without a seed stand for each that others have."""
    seeds = sorted({seed for _, seed, _ in found if seed >= 0}) or [0]
    lines = []
    for name in dict.fromkeys(name for name, _, _ in found):
        own = {seed: one for other, seed, one in found if other == name}
        if -1 in own or all(seed in own for seed in seeds):
            lines.append(line_of(given, name, [own.get(seed, own.get(-1)) for seed in seeds], seeds))
    return lines


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--expert", action="append", required=True, metavar="NAME=MODEL")
    parser.add_argument("--task", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--choices", action="append", default=[], metavar="NAME")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--context", type=int)
    parser.add_argument("--train", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--steps", type=int, default=600, help="of training, 32 rows each")
    parser.add_argument("--evaluations", type=int, default=112, help="of a task, about, for each tuned row")
    parser.add_argument(
        "--choose-in",
        default="float32",
        metavar="DTYPE",
        help="to score rows that choose; others are float32",
    )
    parser.add_argument("--seeds", default="0,1,2", help="of the parting of rows")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="rows of the table with this in their name",
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--journal", type=Path, required=True)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    said = arguments(words)
    room = said.journal.parent / f"{said.journal.name}.work"
    room.mkdir(parents=True, exist_ok=True)
    tasks = {name: Path(file) for name, _, file in (text.partition("=") for text in said.task)}
    for name in said.choices:
        tasks[name] = as_choices(tasks[name], room / f"{name}-choices.jsonl")
    experts = {name: model for name, _, model in (text.partition("=") for text in said.expert)}
    options = kanna.EvalOptions(context=said.context)
    train = {name: Path(file) for name, _, file in (text.partition("=") for text in said.train)}
    choosing = kanna.EvalOptions(context=said.context, dtype=said.choose_in)
    given = Given(
        said.base, experts, tasks, said.text, options, said.evaluations, room, train, said.steps, choosing,
        tuple(said.only),
    )  # fmt: skip
    seeds = [int(seed) for seed in said.seeds.split(",")]
    found = list(measured(given, Journal(said.journal), seeds, said.minutes))
    lines = lines_of(given, found)
    named = {line.name: line for line in lines}
    if "base" in named and all(f"expert {name}" in named for name in experts):
        pairs = {name: (named["base"], named[f"expert {name}"]) for name in experts}
        print("\n".join(table(lines, pairs)))


if __name__ == "__main__":
    main()
