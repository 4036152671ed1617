"""The main job on the small model shipped with kanna: inspect, compress, reload, compare."""

import math
import re
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.checkpoint.outputs import final_name, refuse_replacing
from kanna.checkpoint.writer import output_directory, write_json
from kanna.errors import InputError
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton
from kanna.progress import Progress, told
from kanna.runs.opened import Opened
from kanna.runs.unfinished import sole_writer
from kanna.tasks.data.rows import read_rows
from kanna.tasks.metrics.summaries import breakdown
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.perplexity import perplexity

KEEPS = (0.9, 0.8, 0.6, 0.4)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kanna's default", {}),
    ("plain SVD", {"method": "plain", "allocation": "uniform"}),
)
CONTEXT = 128
TOKENS = 8192
_OURS, _PICTURE = "demo.json", "demo.png"
# Folders of the compressed models.
_MODELS = r"(kanna|plain)-0\.\d+"
_COLOURS = {"kanna's default": "#0b6e4f", "plain SVD": "#b5541c"}


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
        fields = asdict(self)
        named = {"out": str(self.out), "constant_answer": fields.pop("constant")}
        return {"schema_version": 1, **fields, **named}


def demo(out: str | Path, force: bool = False, progress: Progress = lambda *_: None) -> DemoResult:
    """Compress the shipped model at several ratios and compare what is left of its skills.

    Args:
        out: Directory for the compressed models, `demo.json` and `demo.png`.
        force: Replace the directory of an earlier demo.

    Raises:
        InputError: `out` exists and is not to be replaced.
    """
    target = final_name(out)
    with (
        sole_writer(target, force, _refuse_replacing),
        output_directory(target, force=force, refuse=_refuse_replacing) as partial,
    ):
        with as_file(files("kanna.demo")) as home:
            result = replace(_run(home, partial, progress), out=target)
        write_json(partial / _OURS, result.to_dict())
        _draw(result.rows, result.constant, partial / _PICTURE)
    return result


def _refuse_replacing(target: Path) -> None:
    """Raise InputError for what is not the output of an earlier demo, or holds something beside it."""
    if target.is_symlink() or not (target / _OURS).is_file():
        raise InputError(f"{target} is not the output of an earlier demo", "choose another --out")
    for path in sorted(target.iterdir()):
        if path.is_dir() and re.fullmatch(_MODELS, path.name):
            refuse_replacing(path)
        elif path.name not in (_OURS, _PICTURE) and not _is_record(path):
            raise InputError(
                f"{target} holds {path.name}, which is not from the demo, so --force does not replace it",
                "choose another --out, or move it away",
            )


def _is_record(path: Path) -> bool:
    """Of the run that wrote a model."""
    return re.fullmatch(rf"({_MODELS})\.run\.json", path.name) is not None


def _run(home: Path, target: Path, progress: Progress) -> DemoResult:
    model = home / "model"
    dense, score = _measure("dense", 1.0, model, home)
    rows = [dense]
    steps = [(name, settings, keep) for keep in KEEPS for name, settings in METHODS]
    for name, settings, keep in told(progress, "demo", steps):
        config = parse_config({"keep": keep, "context": CONTEXT, "tokens": TOKENS, **settings})
        directory = target / f"{'plain' if settings else 'kanna'}-{keep:g}"
        text = home / "data" / "calibration.jsonl"
        done_run = lowrank(model, directory, config, calibration=text, cache=target / "cache")
        kept = done_run.figures["keep_selected"]
        rows.append(_measure(name, kept, directory, home)[0])
    shutil.rmtree(target / "cache", ignore_errors=True)
    matrices = len(inventory(skeleton(model)).compressible)
    lost = tuple(_loss(dense, row) for row in rows if row.method == METHODS[0][0])
    return DemoResult(target, matrices, score.rows, score.floors["constant"], tuple(rows), lost)


def _measure(method: str, keep: float, directory: Path, home: Path) -> tuple[DemoRow, TaskScore]:
    """Reload a model as a user would, and evaluate it; the score of the questions beside the row."""
    opened, options = Opened.open(directory), EvalOptions()
    plan = opened.prepared([home / "data" / "questions.jsonl"], options)
    model = opened.loaded(options)
    score = plan.evaluate(model).scores[0]
    by_skill = breakdown(score, plan.tasks[0].rows, "skill")
    skills = {skill: float(figures["value"]) for skill, figures in by_skill.items()}
    stories = [row.text for row in read_rows(home / "data" / "heldout.jsonl")]
    lost = _perplexity(model, plan.tokenizer, stories)
    return DemoRow(method, keep, opened.checkpoint.bytes, score.value, skills, lost), score


def _perplexity(model: nn.Module, tokenizer: Any, stories: list[str]) -> float:
    """Of short texts that have nothing to do with each other: none is the context of the next."""
    ids = [torch.tensor(tokenizer(story, verbose=False)["input_ids"]) for story in stories]
    scored = [perplexity(model, story, CONTEXT, CONTEXT) for story in ids]
    return math.exp(
        -sum(scores.log_likelihood for scores in scored) / sum(scores.scored for scores in scored)
    )


def _loss(dense: DemoRow, row: DemoRow) -> str:
    """A plain sentence: what a model lost against the dense one."""
    drop = 100 * (dense.right - row.right)
    worst = min(row.by_skill, key=lambda skill: row.by_skill[skill] - dense.by_skill[skill])
    where = f", most in '{worst}' ({100 * row.by_skill[worst]:.0f} % right)" if drop >= 0.5 else ""
    return (
        f"keep {row.keep:.2f}: {100 * (1 - row.model_bytes / dense.model_bytes):.0f} % fewer bytes, "
        f"{drop:.1f} points of accuracy lost{where}; "
        f"perplexity {dense.perplexity:.2f} -> {row.perplexity:.2f}"
    )


def _draw(rows: tuple[DemoRow, ...], constant: float, path: Path) -> None:
    """Share of right answers over the model's size, a line for each method; written as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dense = rows[0]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, colour in _COLOURS.items():
        line = [dense, *(row for row in rows if row.method == method)]
        x = [row.model_bytes / 1e6 for row in line]
        axes.plot(x, [100 * row.right for row in line], marker="o", color=colour, label=method, lw=2)
    axes.axhline(100 * constant, color="#777", ls=":", lw=1.5, label="always the commonest answer")
    axes.annotate("dense", (dense.model_bytes / 1e6, 100 * dense.right), (0, 8), textcoords="offset points",
                  ha="center", fontsize=9)  # fmt: skip
    axes.set(xlabel="size of the whole model (MB)", ylabel="questions answered exactly (%)", ylim=(-2, 108))
    axes.set_title("What is left when layers come off", loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150, metadata={"Software": None})
