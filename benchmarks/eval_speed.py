"""kanna's log-likelihoods against those of lm-evaluation-harness, in one process, on the same requests.

Both get the same model object and the same (context, continuation) pairs in float32, and tokenise them within
the time that is measured. kanna's batches hold about --batch-tokens tokens. The harness, whose batches hold
rows, runs with the rows that fill as many tokens and with each number of --batches; its best median counts.
After a warm-up all take turns, in one order and then in the other; the ratio is that of the medians. Ends
with code 1 if a log-likelihood differs by more than 1e-4, or a prediction whose lead is 2e-4 or more.

    python benchmarks/eval_speed.py MODEL --data ../shared/data --rows 60
"""

import argparse
import json
import logging
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from kanna.checkpoint.loader import load
from kanna.tasks.scorers.planning import Likelihoods, likelihoods
from kanna.tasks.tokens.encode import Encoder, Piece

Row = tuple[str, list[str]]
KANNA = "kanna"
CLOSE, TIE = 1e-4, 2e-4


def facts(data: Path, rows: int) -> list[Row]:
    """Cloze prompts with eight answers of their relation, mostly one token each."""
    lines = [json.loads(line) for line in (data / "facts" / "facts.jsonl").open(encoding="utf-8")]
    answers = defaultdict(set)
    for line in lines:
        answers[line["relation"]].add(line["answer"])
    draw = random.Random(0)
    chosen = draw.sample([line for line in lines if len(answers[line["relation"]]) >= 8], rows)
    return [(line["prompt"], draw.sample(sorted(answers[line["relation"]]), 8)) for line in chosen]


def problems(data: Path, rows: int) -> list[Row]:
    """Word problems with the right equation and those of seven others."""
    lines = [json.loads(line) for line in (data / "math" / "test.jsonl").open(encoding="utf-8")]
    equations, draw = sorted({line["answer"] for line in lines}), random.Random(0)
    chosen = draw.sample(lines, rows)
    return [
        (
            line["prompt"],
            [line["answer"], *draw.sample([one for one in equations if one != line["answer"]], 7)],
        )
        for line in chosen
    ]


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
    "8 multi-token choices, a question as context (math)": problems,
    "4 multi-token choices, long context (reviews)": reviews,
    "2 single-token choices (truthfulqa)": labelled("truthfulqa"),
    "2 single-token choices (fever)": labelled("fever"),
    "8 choices, most of a single token (facts)": facts,
}


@dataclass(frozen=True)
class Sides:
    """Ways to find the log-likelihoods of the same requests.

    Args:
        run: Name of a side -> what finds them; KANNA, and the harness by rows of a batch.
        pieces: What is asked, in tokens.
        ours: kanna's result, with what it computed.
    """

    run: dict[str, Callable[[], list[float]]]
    pieces: Sequence[Piece]
    ours: Likelihoods


def main() -> int:
    arguments = _arguments()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it says for each row that it was cut
    model, tokenizer = load(arguments.model, dtype=torch.float32)
    print(
        f"{arguments.model.name}, {torch.get_num_threads()} threads, float32, context {arguments.context}, "
        f"medians of {arguments.repeats}"
    )
    equal = [
        _compare(title, make(arguments.data, arguments.rows), model, tokenizer, arguments)
        for title, make in SETS.items()
    ]
    return 0 if all(equal) else 1


def _compare(title: str, rows: list[Row], model: Any, tokenizer: Any, arguments: argparse.Namespace) -> bool:
    """Print one comparison; whether both sides found the same."""
    sides = _sides(rows, model, tokenizer, arguments)
    times, found = _timed(sides.run, arguments.repeats)
    medians = {side: statistics.median(values) for side, values in times.items()}
    best = min((side for side in medians if side != KANNA), key=lambda side: medians[side])
    targets = [len(piece.target) for piece in sides.pieces]
    print(f"\n{title}: {len(rows)} rows, {len(targets)} choices of {statistics.mean(targets):.1f} tokens")
    for side, values in times.items():
        print(f"  {side:<25} {medians[side]:7.2f} s   ({min(values):.2f} to {max(values):.2f})")
    print(f"  {medians[best] / medians[KANNA]:.2f} times as fast as the harness at its best")
    ours = sides.ours
    saved = ours.naive_tokens / ours.forward_tokens
    print(
        f"  {ours.forward_tokens:,} tokens computed for {ours.naive_tokens:,} of single rows ({saved:.2f}x)"
    )
    return _agree(rows, found)


def _sides(rows: list[Row], model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Sides:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    encoder = Encoder(tokenizer, arguments.context)
    requests = [
        Instance("loglikelihood", {}, (prompt, one if one[:1].isspace() else f" {one}"), i)
        for i, (prompt, choices) in enumerate(rows)
        for one in choices
    ]

    def asked() -> list[Piece]:
        return [piece for prompt, choices in rows for piece in encoder.pieces(prompt, choices)]

    def ours() -> Likelihoods:
        return likelihoods(model, asked(), batch_tokens=arguments.batch_tokens)

    def harness(size: int) -> Callable[[], list[float]]:
        peer = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=arguments.context, device="cpu"
        )
        return lambda: [float(total) for total, _ in peer.loglikelihood(requests, disable_tqdm=True)]

    longest = max(len(piece.inputs) for piece in asked())
    sizes = sorted({max(1, arguments.batch_tokens // longest), *arguments.batches})
    run: dict[str, Callable[[], list[float]]] = {KANNA: lambda: [one.sum for one in ours().found]}
    run |= {f"lm_eval, batches of {size}": harness(size) for size in sizes}
    return Sides(run, asked(), ours())


def _timed(
    run: dict[str, Callable[[], list[float]]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each side's runs, and what it found."""
    times: dict[str, list[float]] = {side: [] for side in run}
    found: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for side in list(run) if repeat % 2 else reversed(run):
            started = time.perf_counter()
            found[side] = run[side]()
            if repeat:  # the first round warms up
                times[side].append(time.perf_counter() - started)
    return times, found


def _agree(rows: list[Row], found: dict[str, list[float]]) -> bool:
    ours, agree = found[KANNA], True
    others = [values for side, values in found.items() if side != KANNA]
    apart = max(abs(a - b) for other in others for a, b in zip(ours, other, strict=True))
    for other in others:
        differing, ties = _differing(rows, ours, other)
        agree &= differing == ties
    print(
        f"  largest difference of a log-likelihood {apart:.1e}; predictions "
        + ("the same" if agree else "NOT THE SAME")
    )
    return agree and apart <= CLOSE


def _differing(rows: list[Row], ours: list[float], theirs: list[float]) -> tuple[int, int]:
    """Rows with another prediction, and how many of them are ties."""
    start = differing = ties = 0
    for _, choices in rows:
        mine, other = ours[start : start + len(choices)], theirs[start : start + len(choices)]
        start += len(choices)
        if mine.index(max(mine)) != other.index(max(other)):
            first, second = sorted(mine, reverse=True)[:2]
            differing += 1
            ties += first - second < TIE
    return differing, ties


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
