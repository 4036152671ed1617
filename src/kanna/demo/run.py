"""The main job on the small model shipped with kanna: inspect, compress, reload, compare."""

import math
import re
import shutil
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.checkpoint.outputs import final_name, refuse_replacing
from kanna.checkpoint.writer import output_directory, write_json
from kanna.errors import InputError
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.methods.quantize.config import QuantizeConfig
from kanna.methods.quantize.run import quantize
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton
from kanna.progress import Progress, told
from kanna.reporting.demo import DENSE, OURS, WHOLE, DemoResult, DemoRow
from kanna.result import replace
from kanna.runs.opened import Opened
from kanna.runs.record import when_and_where
from kanna.runs.unfinished import sole_writer
from kanna.tasks.data.rows import read_rows
from kanna.tasks.metrics.summaries import breakdown
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.perplexity import perplexity

KEEPS = (0.9, 0.8, 0.6, 0.4)
_PLAIN = "plain SVD"
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    (OURS, {}),
    (_PLAIN, {"method": "plain", "allocation": "uniform"}),
)
# Bits of whole numbers, from the weights alone, with a scale for each group of so many.
BITS, GROUP = (8, 4, 3), "32"
CONTEXT = 128
TOKENS = 8192
_RESULT, _PICTURE = "demo.json", "demo.png"
# Folders of the compressed models.
_MODELS = r"((kanna|plain)-0\.\d+|int-\d)"
# Colour, name, and where that stands beside the end of the line, in points.
_LINES = {
    OURS: ("#0b6e4f", "kanna's low rank", (12, -6)),
    _PLAIN: ("#b5541c", _PLAIN, (12, -2)),
    WHOLE: ("#1b5a9c", WHOLE, (-6, -14)),
}


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
        output_directory(target, force=force, refuse=_refuse_replacing) as room,
    ):
        with as_file(files("kanna.demo")) as home:
            result = replace(_run(home, room, progress), out=str(target))
        write_json(room / _RESULT, {**when_and_where(), **result.to_dict()})
        _draw(result.rows, result.constant_answer, room / _PICTURE)
    return result


def _refuse_replacing(target: Path) -> None:
    """Raise InputError for what is not the output of an earlier demo, or holds something beside it."""
    if target.is_symlink() or not (target / _RESULT).is_file():
        raise InputError(f"{target} is not the output of an earlier demo", "choose another --out")
    for path in sorted(target.iterdir()):
        if path.is_dir() and re.fullmatch(_MODELS, path.name):
            refuse_replacing(path)
        elif path.name not in (_RESULT, _PICTURE) and not _is_record(path):
            raise InputError(
                f"{target} holds {path.name}, which is not from the demo, so --force does not replace it",
                "choose another --out, or move it away",
            )


def _is_record(path: Path) -> bool:
    """Of the run that wrote a model."""
    return re.fullmatch(rf"({_MODELS})\.run\.json", path.name) is not None


def _run(home: Path, target: Path, progress: Progress) -> DemoResult:
    model = home / "model"
    dense, score = _measure(DENSE, "all", 1.0, model, home)
    rows = [dense]
    steps = [
        *(partial(_smaller, name, settings, keep) for keep in KEEPS for name, settings in METHODS),
        *(partial(_whole, bits) for bits in BITS),
    ]
    for step in told(progress, "demo", steps):
        name, setting, kept, directory = step(home, target)
        rows.append(_measure(name, setting, kept, directory, home)[0])
    shutil.rmtree(target / "cache", ignore_errors=True)
    matrices = len(inventory(skeleton(model)).compressible)
    lost = tuple(_loss(dense, row) for row in rows if row.method in (OURS, WHOLE))
    return DemoResult(
        out=str(target),
        matrices=matrices,
        questions=score.rows,
        constant_answer=score.floors["constant"],
        rows=tuple(rows),
        lost=lost,
    )


# Method, setting, share of parameters kept, and where the model is.
_Made = tuple[str, str, float, Path]


def _smaller(name: str, settings: dict[str, Any], keep: float, home: Path, target: Path) -> _Made:
    """Low rank."""
    config = parse_config({"keep": keep, "context": CONTEXT, "tokens": TOKENS, **settings})
    directory = target / f"{'plain' if settings else 'kanna'}-{keep:g}"
    text = home / "data" / "calibration.jsonl"
    ran = lowrank(home / "model", directory, config, calibration=text, cache=target / "cache")
    return name, f"keep {keep:.2f}", ran.figures["keep_selected"], directory


def _whole(bits: int, home: Path, target: Path) -> _Made:
    """Whole numbers of so many bits, all of them kept."""
    directory = target / f"int-{bits}"
    quantize(home / "model", directory, QuantizeConfig(bits=bits, group=GROUP), cache=target / "cache")
    return WHOLE, f"{bits} bits", 1.0, directory


def _measure(
    method: str, setting: str, keep: float, directory: Path, home: Path
) -> tuple[DemoRow, TaskScore]:
    """Reload a model as a user would, and evaluate it; the score of the questions beside the row."""
    opened, options = Opened.open(directory), EvalOptions()
    plan = opened.prepared([home / "data" / "questions.jsonl"], options)
    model = opened.loaded(options)
    score = plan.evaluate(model).scores[0]
    by_skill = breakdown(score, plan.tasks[0].rows, "skill")
    skills = {skill: float(figures["value"]) for skill, figures in by_skill.items()}
    stories = [row.text for row in read_rows(home / "data" / "heldout.jsonl")]
    lost = _perplexity(model, plan.tokenizer, stories)
    row = DemoRow(
        method=method,
        setting=setting,
        keep=keep,
        model_bytes=opened.checkpoint.bytes,
        right=score.value,
        by_skill=skills,
        perplexity=lost,
    )
    return row, score


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
        f"{row.setting}: {100 * (1 - row.model_bytes / dense.model_bytes):.0f} % fewer bytes, "
        f"{drop:.1f} points of accuracy lost{where}; "
        f"perplexity {dense.perplexity:.2f} -> {row.perplexity:.2f}"
    )


def _draw(rows: tuple[DemoRow, ...], constant: float, path: Path) -> None:
    """Share of right answers over the model's size, a line for each method, its name beside it; as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dense = rows[0]
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, (colour, name, side) in _LINES.items():
        mine = [row for row in rows if row.method == method]
        x, y = [row.model_bytes / 1e6 for row in mine], [100 * row.right for row in mine]
        begin = ([dense.model_bytes / 1e6], [100 * dense.right])
        axes.plot(begin[0] + x, begin[1] + y, marker="o", color=colour, lw=2)
        if method == WHOLE:
            for row, across in zip(mine, x, strict=True):
                axes.annotate(row.setting, (across, 100 * row.right), (0, 8), textcoords="offset points",
                              color=colour, fontsize=9, ha="center")  # fmt: skip
        axes.annotate(name, (x[-1], y[-1]), side, textcoords="offset points", va="center",
                      color=colour, fontweight="bold")  # fmt: skip
    axes.axhline(100 * constant, color="#555", ls=":", lw=1.5)
    end = dense.model_bytes / 1e6
    axes.annotate("always the commonest answer", (end, 100 * constant), (0, 6), textcoords="offset points",
                  ha="right", fontsize=9, color="#555")  # fmt: skip
    axes.annotate("as shipped", (end, 100 * dense.right), (5, 8), textcoords="offset points",
                  ha="right", fontsize=9)  # fmt: skip
    axes.set(xlabel="size of the whole model (MB)", ylabel="questions answered exactly (%)", ylim=(-2, 108))
    axes.set_title(_title(rows), loc="left", fontsize=11, fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _title(rows: tuple[DemoRow, ...]) -> str:
    """What was found, in figures: of the smallest model of each method, beside the model as shipped."""
    last = {row.method: row for row in rows}
    dense, ours, plain, whole = rows[0], last[OURS], last[_PLAIN], last[WHOLE]
    gone = {row.method: 1 - row.model_bytes / dense.model_bytes for row in (ours, whole)}
    return (
        f"{gone[WHOLE]:.0%} smaller, {whole.right:.0%} of the answers right as whole numbers of "
        f"{whole.setting};\n"
        f"{gone[OURS]:.0%} smaller, {ours.right:.0%} right by low rank "
        f"(plain SVD: {plain.right:.0%}; as shipped: {dense.right:.0%})"
    ).replace("%", " %")
