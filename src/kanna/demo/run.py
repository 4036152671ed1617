"""The main job on the small model shipped with kanna: inspect, compress, reload, compare."""

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from torch import nn

from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import write_json
from kanna.demo.picture import draw
from kanna.errors import InputError
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton
from kanna.progress import Progress
from kanna.tasks.data.rows import Row, read_rows
from kanna.tasks.scorers.exact import answered
from kanna.tasks.scorers.perplexity import perplexity

KEEPS = (0.9, 0.8, 0.6, 0.4)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kanna's default", {}),
    ("plain SVD", {"method": "plain", "allocation": "uniform"}),
)
CONTEXT = 128
TOKENS = 8192
_OURS = "demo.json"


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo.

    Args:
        method: How it was compressed; "dense" for the shipped model.
        keep: Parameters of the matrices kept, as reached.
        model_bytes: Of all tensors.
        right: Share of the questions answered exactly.
        by_skill: The same for each kind of question.
        perplexity: On held-out stories, each on its own.
    """

    method: str
    keep: float
    model_bytes: int
    right: float
    by_skill: dict[str, float]
    perplexity: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo did and where it is."""

    out: Path
    matrices: int
    questions: int
    constant: float
    rows: tuple[DemoRow, ...]
    lost: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "out": str(self.out),
            "matrices": self.matrices,
            "questions": self.questions,
            "constant_answer": self.constant,
            "rows": [asdict(row) for row in self.rows],
            "lost": list(self.lost),
        }


def demo(out: str | Path, force: bool = False, progress: Progress = lambda *_: None) -> DemoResult:
    """Compress the shipped model at several ratios and compare what is left of its skills.

    Args:
        out: Directory for the compressed models, `demo.json` and `demo.png`.
        force: Replace the directory of an earlier demo.

    Raises:
        InputError: `out` exists and is not to be replaced.
    """
    target = Path(out).expanduser().absolute()
    _check(target, force)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with as_file(files("kanna.demo")) as home:
            result = replace(_run(home, partial, progress), out=target)
        write_json(partial / _OURS, result.to_dict())
        draw(result.rows, result.constant, partial / "demo.png")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def _check(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise InputError(f"{target} exists already", "choose another --out, or replace it with --force")
    if not (target / _OURS).is_file():
        raise InputError(f"{target} is not the output of an earlier demo", "choose another --out")


def _run(home: Path, target: Path, progress: Progress) -> DemoResult:
    questions, skills = _questions(home / "data" / "questions.jsonl")
    model = home / "model"
    rows = [_measure("dense", 1.0, model, home, questions, skills)]
    steps = [(name, settings, keep) for keep in KEEPS for name, settings in METHODS]
    for done, (name, settings, keep) in enumerate(steps):
        progress("demo", done, len(steps))
        config = parse_config({"keep": keep, "context": CONTEXT, "tokens": TOKENS, **settings})
        directory = target / f"{'plain' if settings else 'kanna'}-{keep:g}"
        text = home / "data" / "calibration.jsonl"
        done_run = lowrank(model, directory, config, calibration=text, cache=target / "cache")
        kept = done_run.figures["keep_selected"]
        rows.append(_measure(name, kept, directory, home, questions, skills))
    progress("demo", len(steps), len(steps))
    shutil.rmtree(target / "cache", ignore_errors=True)
    matrices = len(inventory(skeleton(model)).compressible)
    return DemoResult(target, matrices, len(questions), _constant(questions), tuple(rows), _lost(rows))


def _questions(path: Path) -> tuple[list[Row], list[str]]:
    """The questions and the kind of each."""
    kinds = [
        json.loads(line).get("skill", "") for line in path.read_text("utf-8").splitlines() if line.strip()
    ]
    return read_rows(path), kinds


def _measure(
    method: str, keep: float, directory: Path, home: Path, questions: list[Row], skills: list[str]
) -> DemoRow:
    """Reload a model as a user would and score it."""
    model, tokenizer = load(directory, dtype="float32")
    right = answered(model, tokenizer, questions)
    by_skill = {
        skill: _mean([r for r, s in zip(right, skills, strict=True) if s == skill])
        for skill in sorted(set(skills))
    }
    stories = [row.text for row in read_rows(home / "data" / "heldout.jsonl")]
    size = Checkpoint.open(directory).bytes
    return DemoRow(method, keep, size, _mean(right), by_skill, _perplexity(model, tokenizer, stories))


def _perplexity(model: nn.Module, tokenizer: Any, stories: list[str]) -> float:
    """Of short texts that have nothing to do with each other: none is the context of the next."""
    total, scored = 0.0, 0
    for story in stories:
        ids = tokenizer(story, return_tensors="pt")["input_ids"][0]
        found = perplexity(model, ids, CONTEXT, CONTEXT)
        total += found.log_likelihood
        scored += found.scored
    return math.exp(-total / scored)


def _mean(values: list[bool]) -> float:
    return sum(values) / max(1, len(values))


def _constant(questions: list[Row]) -> float:
    """Share of questions that the commonest answer gets right."""
    answers = [row.answer for row in questions]
    return max(answers.count(answer) for answer in set(answers)) / len(answers)


def _lost(rows: list[DemoRow]) -> tuple[str, ...]:
    """Plain sentences: what each of our models lost against the dense one."""
    dense = rows[0]
    return tuple(_loss(dense, row) for row in rows[1:] if row.method == METHODS[0][0])


def _loss(dense: DemoRow, row: DemoRow) -> str:
    drop = 100 * (dense.right - row.right)
    worst = min(row.by_skill, key=lambda skill: row.by_skill[skill] - dense.by_skill[skill])
    where = f", most in '{worst}' ({100 * row.by_skill[worst]:.0f} % right)" if drop >= 0.5 else ""
    return (
        f"keep {row.keep:.2f}: {100 * (1 - row.model_bytes / dense.model_bytes):.0f} % fewer bytes, "
        f"{drop:.1f} points of accuracy lost{where}; "
        f"perplexity {dense.perplexity:.2f} -> {row.perplexity:.2f}"
    )
