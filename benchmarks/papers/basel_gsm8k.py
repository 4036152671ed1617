"""Basel on GSM8K, beside the figures of its paper (Li et al. 2024, arXiv 2405.15877).

    python benchmarks/papers/basel_gsm8k.py --model DIR --train train.jsonl --test test.jsonl --device cuda

DIR is a model that answers these questions already (the paper's is a Llama-2-7B that was fine-tuned on
mathematics; any other goes, too); the files are yours, as GSM8K has them ({"question", "answer"}, the number
behind "####" last) or as kanna has them ({"prompt", "answer"}). For each of --times and --settings the model
is compressed to that share of its matrices and asked; what counts is the last number that is written.

`paper` is the published preset, 128 rows a step; `defaults` is `kanna basel` as it comes. The paper's own
figures stand beside, digitised from a figure: about half a point and 0.05x off. They are of another
model unless yours is the same, so look at how the curves fall and not at their height.

Each finished run is a line of --journal and is not done again; one that was killed is taken up.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kanna
from kanna.runs.places import unfinished

# Times smaller -> right answers, per cent, of Llama-2-7B on GSM8K; digitised from the paper's figure.
PUBLISHED = {
    "uncompressed": {1.0: 66.5},
    "Basel": {1.3: 63.0, 2.05: 61.5, 3.7: 56.2, 5.55: 50.1, 10.1: 40.0, 15.7: 33.9},
    "SVD, fine-tuned": {2.1: 61.0, 3.88: 54.0, 6.05: 33.1, 11.9: 11.9},
}
SETTINGS: dict[str, dict[str, Any]] = {"paper": {"preset": "paper", "rows": 128}, "defaults": {}}
DENSE = "as it is"


@dataclass(frozen=True)
class Run:
    """One line of the table.

    Args:
        settings: Key of SETTINGS, or DENSE.
        times: How many times smaller the matrices shall be.
        asked: All else that the figures depend on.
    """

    settings: str
    times: float
    asked: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        return json.dumps([self.settings, self.times, dict(self.asked)])


class Journal:
    """Figures of runs, one line each; those that are there are not computed again."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, dict[str, Any]]()
        if path.exists():
            for line in path.open(encoding="utf-8"):
                self.found |= json.loads(line)

    def keep(self, run: Run, figures: Mapping[str, Any]) -> None:
        self.found[run.key] = dict(figures)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({run.key: figures}) + "\n")


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """As questions that kanna asks and learns."""
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        if "question" in row:
            yield {"prompt": f"Question: {row['question']}\nAnswer:", "answer": f" {row['answer']}"}
        else:
            yield {"prompt": row["prompt"], "answer": row["answer"]}


def converted(source: Path, target: Path, limit: int | None = None) -> Path:
    rows = list(rows_of(source))[:limit]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def configuration(run: Run, train: Path, options: argparse.Namespace) -> kanna.BaselConfig:
    """That of the settings, with what was said on the command line over it."""
    said = {
        "epochs": options.epochs,
        "rows": options.rows,
        "prune_events": options.events,
        "extra_rank": options.extra_rank,
    }
    given = SETTINGS[run.settings] | {name: value for name, value in said.items() if value is not None}
    return kanna.BaselConfig(
        data=train,
        keep=1 / run.times,
        select=options.select,
        context=options.context,
        precision=options.precision,
        recompute=options.recompute,
        **given,
    )


def compressed(run: Run, train: Path, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The directory, made or taken up where it was interrupted, and what is kept in it."""
    out = options.work / f"{run.settings}-{run.times:g}"
    config = configuration(run, train, options)
    how = kanna.EvalOptions(device=options.device)
    # A directory without a line in the journal was written, but not asked.
    resume = unfinished(out)
    result = kanna.basel(
        options.model, out, config, resume=resume, force=not resume, options=how, progress=_told
    )
    return out, {name: result.figures[name] for name in ("keep_selected", "keep_model", "validation_loss")}


def _told(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done}/{total}   ", end="", file=sys.stderr, flush=True)


def right(model: Path, test: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Share of questions whose last number is right."""
    how = kanna.EvalOptions(
        metric="numeric",
        context=options.context,
        new_tokens=options.new_tokens,
        stop=("\nQuestion:",),  # answers have several lines
        device=options.device,
    )
    score = kanna.evaluate(model, [test], how).scores[0]
    return {"right": 100 * score.value, "questions": len(score.records)}


def figures(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Of one line."""
    test = converted(options.test, options.work / "test.jsonl", options.questions)
    if run.settings == DENSE:
        return {"keep_selected": 1.0, "keep_model": 1.0, **right(options.model, test, options)}
    train = converted(options.train, options.work / "train.jsonl")
    model, kept = compressed(run, train, options)
    return kept | right(model, test, options)


def runs(options: argparse.Namespace) -> list[Run]:
    """Those that are asked for, the model as it is first."""
    names = ("epochs", "rows", "events", "extra_rank", "select", "context", "precision", "questions")
    asked = {name: getattr(options, name) for name in (*names, "new_tokens")}
    asked |= {name: getattr(options, name).resolve() for name in ("model", "train", "test")}
    known = tuple((name, str(value)) for name, value in asked.items())
    some = [Run(each, times, known) for each in options.settings for times in options.times]
    return [Run(DENSE, 1.0, known), *some]


def nearest(method: str, times: float) -> str:
    """The paper's figure nearest to a ratio."""
    points = PUBLISHED["uncompressed"] if times == 1 else PUBLISHED[method]
    at = min(points, key=lambda point: abs(point - times))
    return f"{points[at]:g} at {at:g}x"


def table(done: Sequence[tuple[Run, Mapping[str, Any]]]) -> Iterator[str]:
    """All lines."""
    yield "| settings | matrices | whole model | right | Basel, paper* | SVD, fine-tuned, paper* |"
    yield "|---|---:|---:|---:|---:|---:|"
    for run, found in done:
        yield (
            f"| {run.settings} | {1 / found['keep_selected']:.2f}x | {1 / found['keep_model']:.2f}x | "
            f"{found['right']:.1f} % of {found['questions']:,} | {nearest('Basel', run.times)} | "
            f"{nearest('SVD, fine-tuned', run.times)} |"
        )
    yield "\n* Llama-2-7B, digitised from a figure: about +-0.5 points, +-0.05x."


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="rows to learn from")
    parser.add_argument("--test", type=Path, required=True, help="rows to ask, not learnt")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--times", nargs="+", type=float, default=[2.0, 3.8, 5.6], help="smaller matrices")
    parser.add_argument("--select", default="all,lm_head", help="as published; 'all' where the head is tied")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--questions", type=int, help="the first so many; by default all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recompute", action="store_true", help="less memory")
    parser.add_argument("--epochs", help="A,B,C in place of 1,2,3")
    parser.add_argument("--rows", type=int, help="a step, in place of those of the settings")
    parser.add_argument("--events", type=int, help="in place of those of the settings")
    parser.add_argument("--extra-rank", type=int, help="in place of that of the settings")
    parser.add_argument("--work", type=Path, default=Path("basel_gsm8k"), help="folder of what is made")
    parser.add_argument("--journal", type=Path, help="by default journal.jsonl in --work")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = arguments(words)
    options.work.mkdir(parents=True, exist_ok=True)
    journal = Journal(options.journal or options.work / "journal.jsonl")
    done = []
    for run in runs(options):
        if run.key not in journal.found:
            print(f"{run.settings}, {run.times:g}x", file=sys.stderr, flush=True)
            journal.keep(run, figures(run, options))
        done.append((run, journal.found[run.key]))
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
