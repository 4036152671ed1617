"""Hi-Merging of two languages, beside the figures of its paper (Fu et al. 2025, arXiv 2506.12379).

    python benchmarks/papers/hi_merging_bilingual.py --base DIR --first medqa=DIR --second cmexam=DIR \\
        --calibration medqa=dev.jsonl --calibration cmexam=dev-zh.jsonl \\
        --test medqa=test.jsonl --test cmexam=test-zh.jsonl --device cuda

DIR are a base and two fine-tunes of it, perhaps BASE+ADAPTER (the paper's: Qwen2-7B-Instruct with LoRA of
rank 8 on MedQA in English and CMExam in Chinese); the files are yours, as kanna has them: choices, or
answers that are written with `--metric rougeL` or so. Calibration rows choose, test rows judge; they must
share no group. Told are the base, both experts, their sum (task arithmetic), TIES and DARE as published,
and Hi-Merging by model, by layer and both, on both tests, with the gain over the base in the mean. The
paper's own figures, which were chosen on test data, stand beside where a row has one. They are of another
model unless yours is the same.

Each finished run is a line of --journal and is not done again; a Hi-Merging that was killed is taken up.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kanna
from journalled import Journal
from kanna.runs.places import unfinished

# Right answers on MedQA and CMExam, per cent, of Qwen2-7B, as read from the paper.
PUBLISHED = {
    "base": (51.41, 74.62),
    "first expert": (59.14, 83.78),
    "task arithmetic": (59.53, 88.77),
    "ties": (59.06, 88.78),
    "dare": (58.67, 88.69),
    "hi, both": (60.16, 89.07),
}
Given = argparse.Namespace


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def recipe(given: Given, method: str, **parameters: Any) -> dict[str, Any]:
    models = [{"model": model, "parameters": {"weight": 1.0}} for model in experts(given).values()]
    return {"merge_method": method, "base_model": given.base, "models": models, "parameters": parameters}


def experts(given: Given) -> dict[str, str]:
    return pairs([given.first, given.second])


def merged(given: Given, name: str, made: Mapping[str, Any]) -> str:
    out = given.work / name.replace(", ", "-").replace(" ", "-")
    kanna.merge(made, out, force=True)
    return str(out)


def alone(given: Given, name: str, model: str) -> str:
    """A model that can be evaluated: an adapter is merged first."""
    if "+" not in model:
        return model
    listed = [{"model": model, "parameters": {"weight": 1.0}}]
    return merged(given, name, {"merge_method": "linear", "models": listed})


def by_hi(given: Given, stages: str) -> str:
    out = given.work / f"hi-{stages}"
    tried = {} if stages == "layer" else {"p": given.p, "s": given.s}
    options = kanna.HiOptions(stages=stages, rounds=given.rounds, **tried)
    resume = unfinished(out)
    kanna.merge_hi(
        given.base, experts(given), pairs(given.calibration), out, options, tests=pairs(given.test),
        evaluation=scoring(given), resume=resume, force=not resume, progress=_told,
    )  # fmt: skip
    return str(out)


def scoring(given: Given) -> kanna.EvalOptions:
    return kanna.EvalOptions(metric=given.metric, device=given.device, dtype=given.dtype)


def rows(given: Given) -> dict[str, Callable[[], str]]:
    """Name -> what makes the model of it."""
    first, second = experts(given).values()
    return {
        "base": lambda: str(given.base),
        "first expert": lambda: alone(given, "first", first),
        "second expert": lambda: alone(given, "second", second),
        "task arithmetic": lambda: merged(given, "sum", recipe(given, "task_arithmetic")),
        "ties": lambda: merged(given, "ties", recipe(given, "ties", density=0.2)),
        "dare": lambda: merged(given, "dare", recipe(given, "dare_linear", density=0.2)),
        **{f"hi, {stages}": lambda stages=stages: by_hi(given, stages) for stages in given.stages},  # type: ignore[misc]
    }


def scores(given: Given, model: str) -> list[float]:
    """On the tests of both experts, in their order."""
    files = [pairs(given.test)[name] for name in experts(given)]
    found = kanna.evaluate(model, files, scoring(given), fresh=True).scores
    return [100 * one.value for one in found]


def _told(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done}/{total}   ", end="", file=sys.stderr, flush=True)


def table(given: Given, found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    names = list(experts(given))
    yield f"| | {names[0]} | {names[1]} | gain over the base, mean | MedQA, paper* | CMExam, paper* |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, (one, other) in found.items():
        gains = [value / base - 1 for value, base in zip((one, other), found["base"], strict=True) if base]
        gain = f"{100 * sum(gains) / len(gains):+.1f} %" if gains else ""
        paper = " | ".join(f"{value:.2f}" for value in PUBLISHED[name]) if name in PUBLISHED else " | "
        yield f"| {name} | {one:.2f} | {other:.2f} | {gain} | {paper} |"
    yield "\n* Qwen2-7B-Instruct; p, s and layers were chosen on test data."


def arguments(words: Sequence[str] | None) -> Given:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--first", required=True, metavar="NAME=MODEL")
    parser.add_argument("--second", required=True, metavar="NAME=MODEL")
    parser.add_argument("--calibration", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--test", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--stages", nargs="+", default=["model", "layer", "both"])
    parser.add_argument("--p", default="0.1:1:0.1")
    parser.add_argument("--s", default="0.1:1:0.1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metric", help="of the rows; by default right choices, or greedy answers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, default=Path("hi_merging_bilingual"))
    parser.add_argument("--journal", type=Path, help="by default journal.jsonl in --work")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    given = arguments(words)
    given.work.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.journal or given.work / "journal.jsonl")
    asked = {
        key: str(value) for key, value in vars(given).items() if key not in ("stages", "work", "journal")
    }
    found = {}
    for name, make in rows(given).items():
        print(name, file=sys.stderr, flush=True)
        found[name] = journal.once(
            [name, json.dumps(asked, sort_keys=True)], lambda make=make: scores(given, make())
        )
    print("\n".join(table(given, found)))


if __name__ == "__main__":
    main()
