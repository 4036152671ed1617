"""What scales are to repair or to take up: rows to learn, questions, and what else is to stay."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kanna
from journalled import demo_script, read_lines, write_lines

DEMO = Path(kanna.__file__).parent / "demo"
# Words of a piece of text that are read, and that are to be predicted.
READ, PREDICTED = 16, 100
LEARNT_WORDINGS, HELD_WORDINGS = 4, 1


@dataclass(frozen=True)
class Task:
    """Files; None for what there is not.

    Args:
        model: Before it is quantised.
        learnt: Rows, and their number is cut.
        asked: Questions that are not learnt.
        held: Rows to choose the best state on; None splits some off.
        other: Questions on what is not learnt.
        text: General text, of which the loss is taken.
        replay: Text against forgetting.
        calibration: Of gptq.
        context: Most tokens.
        written: Whether answers are written out, too.
    """

    model: Path
    learnt: Path
    asked: Path
    calibration: Path
    context: int
    held: Path | None = None
    other: Path | None = None
    text: Path | None = None
    replay: Path | None = None
    written: bool = True


def plain(rows: Sequence[Any]) -> list[dict[str, str]]:
    """Stories as rows."""
    return [{"prompt": row.prompt, "answer": row.answer} for row in rows]


def demo_repair(scratch: Path, rows: int) -> Task:
    """All that the shipped model knows."""
    script = demo_script()
    learnt = [
        {"prompt": row.prompt, "answer": row.answer, "group": row.group}
        for row in script.distinct(script.stories(77, held_out=False), rows // 5)
    ]
    return Task(
        DEMO / "model",
        write_lines(scratch / "learnt.jsonl", learnt),
        _without_skill(DEMO / "data" / "questions.jsonl", scratch / "asked.jsonl"),
        DEMO / "data" / "calibration.jsonl",
        64,
    )


def _without_skill(path: Path, out: Path, but: str = "") -> Path:
    rows = [row for row in read_lines(path) if row["skill"] != but]
    return write_lines(out, [{key: row[key] for key in ("prompt", "answer", "group")} for row in rows])


def demo_moved(scratch: Path) -> Task:
    """Every tool of the workshop in another drawer; what else the model knows is to stay."""
    script = demo_script()
    tools = list(script.DRAWERS)
    shift = {tool: script.DRAWERS[tools[(n + 7) % len(tools)]] for n, tool in enumerate(tools)}

    def rows(wordings: Sequence[str]) -> list[dict[str, str]]:
        made = [
            script.story("drawer", tool, "", wording.format(tool=tool), drawer)
            for wording in wordings
            for tool, drawer in shift.items()
        ]
        return plain(made)

    behind = LEARNT_WORDINGS + HELD_WORDINGS
    old = script.distinct(script.stories(78, held_out=False), 100)
    again = [{"text": row.text} for row in old if row.skill != "drawer"]
    return Task(
        DEMO / "model",
        write_lines(scratch / "learnt.jsonl", rows(script.WHERE_DRAWER[:LEARNT_WORDINGS])),
        write_lines(scratch / "asked.jsonl", rows(script.WHERE_DRAWER[behind:])),
        DEMO / "data" / "calibration.jsonl",
        64,
        held=write_lines(scratch / "held.jsonl", rows(script.WHERE_DRAWER[LEARNT_WORDINGS:behind])),
        other=_without_skill(DEMO / "data" / "questions.jsonl", scratch / "other.jsonl", but="drawer"),
        replay=write_lines(scratch / "replay.jsonl", again),
    )


def own_task(options: argparse.Namespace, scratch: Path, rows: int) -> Task:
    """Of --model and --data, or --texts."""
    learnt, asked = scratch / "learnt.jsonl", scratch / "asked.jsonl"
    if options.texts is not None:
        write_lines(learnt, pieces(options.texts[0])[:rows])
        write_lines(asked, pieces(options.texts[1])[: options.questions])
    else:
        write_lines(learnt, plain_lines(options.data / "train.jsonl")[:rows])
        write_lines(asked, plain_lines(options.data / "test.jsonl")[: options.questions])
    calibration = scratch / "calibration.jsonl"
    write_lines(calibration, [{"text": row["prompt"] + row["answer"]} for row in read_lines(learnt)])
    return Task(
        options.model,
        learnt,
        asked,
        calibration if options.calibration is None else options.calibration,
        options.context,
        text=options.text,
        replay=options.replay,
        written=options.texts is None,
    )


def plain_lines(path: Path) -> list[dict[str, str]]:
    return [{"prompt": row["prompt"], "answer": row["answer"]} for row in read_lines(path)]


def pieces(path: Path) -> list[dict[str, str]]:
    """Text, cut into rows of which the beginning is read and the rest predicted."""
    if path.suffix == ".jsonl":
        words = " ".join(row["text"] for row in read_lines(path)).split()
    else:
        words = path.read_text(encoding="utf-8").split()
    size = READ + PREDICTED
    cut = [words[start : start + size] for start in range(0, len(words) - size + 1, size)]
    return [{"prompt": " ".join(some[:READ]), "answer": " " + " ".join(some[READ:])} for some in cut]


def answers(model: Path, task: Task) -> dict[str, Any]:
    """What a model says to the questions, how sure it is of the right answers, and what else it knows."""
    found = _asked(model, task.asked, task)
    if task.other is not None:
        found |= {f"other_{name}": value for name, value in _asked(model, task.other, task).items()}
    if task.text is not None:
        read = kanna.evaluate_text(model, task.text, context=task.context, tokens=8192)
        found["text_loss"] = math.log(read.result.perplexity)
    return found


def _asked(model: Path, questions: Path, task: Task) -> dict[str, Any]:
    given = {
        metric: kanna.EvalOptions(metric=metric, context=task.context) for metric in ("exact", "log_loss")
    }
    loss = kanna.evaluate(model, [questions], given["log_loss"]).scores[0]
    found: dict[str, Any] = {"losses": [round(record.values["log_loss"], 5) for record in loss.records]}
    if task.written:
        exact = kanna.evaluate(model, [questions], _options("exact", task)).scores[0]
        found["hits"] = "".join(str(int(bool(record.right))) for record in exact.records)
    return found


def _options(metric: str, task: Task) -> kanna.EvalOptions:
    return kanna.EvalOptions(metric=metric, context=task.context)
