"""kanna's log-likelihoods against those of lm-evaluation-harness, in one process, on the same requests.

Both get the same model object and the same (context, continuation) pairs in float32. The harness runs with
each batch size given and its best counts. Runs alternate after a warm-up; the ratio is that of the medians.

    python benchmarks/eval_speed.py MODEL --data ../shared/data --rows 60
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from kanna.checkpoint.loader import load
from kanna.tasks.encode import Encoder
from kanna.tasks.likelihood import likelihoods

Row = tuple[str, list[str]]


def facts(data: Path, rows: int) -> list[Row]:
    """Cloze prompts with eight answers of their relation, of two words or more where there are any."""
    lines = [json.loads(line) for line in (data / "facts" / "facts.jsonl").open(encoding="utf-8")]
    answers = defaultdict(set)
    for line in lines:
        answers[line["relation"]].add(line["answer"])
    long = {name: sorted(found, key=lambda one: (-len(one), one))[:24] for name, found in answers.items()}
    draw = random.Random(0)
    chosen = draw.sample([line for line in lines if len(long[line["relation"]]) >= 8], rows)
    return [(line["prompt"], draw.sample(long[line["relation"]], 8)) for line in chosen]


def reviews(data: Path, rows: int) -> list[Row]:
    """A long shared context with four continuations of several words."""
    lines = [json.loads(line) for line in (data / "reviews" / "test.jsonl").open(encoding="utf-8")][:rows]
    said = [
        " a film that is well worth seeing",
        " a film that nobody needs to see",
        " a mixed affair, good in parts",
        " hard to say anything about",
    ]
    return [(line["prompt"] + " Overall it is", said) for line in lines]


def labelled(name: str) -> Callable[[Path, int], list[Row]]:
    def read(data: Path, rows: int) -> list[Row]:
        lines = [json.loads(line) for line in (data / name / "task.jsonl").open(encoding="utf-8")][:rows]
        return [(line["prompt"], line["choices"]) for line in lines]

    return read


SETS = {
    "8 multi-token choices, short context (facts)": facts,
    "4 multi-token choices, long context (reviews)": reviews,
    "2 single-token choices (truthfulqa)": labelled("truthfulqa"),
    "2 single-token choices (fever)": labelled("fever"),
}


def main() -> int:
    arguments = _arguments()
    torch.manual_seed(0)
    model, tokenizer = load(arguments.model, dtype=torch.float32)
    print(
        f"{arguments.model.name}, {torch.get_num_threads()} threads, float32, medians of {arguments.repeats}"
    )
    for title, make in SETS.items():
        _compare(title, make(arguments.data, arguments.rows), model, tokenizer, arguments)
    return 0


def _compare(title: str, rows: list[Row], model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    encoder = Encoder(tokenizer, arguments.context)
    peers = {
        size: HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=arguments.context, device="cpu"
        )
        for size in arguments.batches
    }
    requests = [
        Instance("loglikelihood", {}, (prompt, one if one[:1].isspace() else f" {one}"), i)
        for i, (prompt, choices) in enumerate(rows)
        for one in choices
    ]

    def ours() -> list[float]:
        pieces = [piece for prompt, choices in rows for piece in encoder.pieces(prompt, choices)]
        return [one.sum for one in likelihoods(model, pieces).found]

    def theirs(size: int) -> list[float]:
        return [float(total) for total, _ in peers[size].loglikelihood(requests, disable_tqdm=True)]

    times: dict[Any, list[float]] = defaultdict(list)
    found: dict[Any, list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for side in ["kanna", *peers]:
            started = time.perf_counter()
            found[side] = ours() if side == "kanna" else theirs(side)
            if repeat:  # the first round warms up
                times[side].append(time.perf_counter() - started)
    medians = {side: statistics.median(values) for side, values in times.items()}
    best = min(peers, key=lambda size: medians[size])
    apart = max(abs(a - b) for a, b in zip(found["kanna"], found[best], strict=True))
    print(f"\n{title}: {len(rows)} rows, {len(requests)} requests")
    print(
        f"  kanna {medians['kanna']:.2f} s; lm_eval "
        + ", ".join(f"batch {s} {medians[s]:.2f} s" for s in peers)
    )
    print(f"  ratio to its best: {medians[best] / medians['kanna']:.2f}x; spread {_spread(times['kanna'])}")
    same, close = _agreement(rows, found["kanna"], found[best])
    print(f"  largest difference {apart:.1e}; predictions differ in {same} rows ({close} ties)")


def _spread(times: list[float]) -> str:
    return f"{min(times):.2f} to {max(times):.2f} s"


def _agreement(rows: list[Row], ours: list[float], theirs: list[float]) -> tuple[int, int]:
    """Rows with another prediction, and how many of them are ties."""
    start = differing = ties = 0
    for _, choices in rows:
        mine, other = ours[start : start + len(choices)], theirs[start : start + len(choices)]
        start += len(choices)
        if mine.index(max(mine)) != other.index(max(other)):
            first, second = sorted(mine, reverse=True)[:2]
            differing += 1
            ties += first - second < 2e-4
    return differing, ties


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
