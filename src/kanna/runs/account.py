"""The account of a step: its sizes, its entry in the lineage, its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kanna.checkpoint import card, lineage
from kanna.runs.compare import comparison_rows
from kanna.runs.probe import Verdict
from kanna.runs.request import Call
from kanna.runs.source import Source
from kanna.runs.step import Description, Job, Plan
from kanna.tasks.verdict.comparison import NOT_JUDGED, Comparison
from kanna.tasks.verdict.tolerance import FAIL


def with_left_out(description: Description, left_out: tuple[str, ...]) -> Description:
    """What of the source's directory is not in the output, in the lineage and for people."""
    if not left_out:
        return description
    line = f"Left out of the copy (weights in other files, training): {', '.join(left_out)}"
    figures = {**description.figures, "left_out": list(left_out)}
    return replace(description, figures=figures, lines=(*description.lines, line))


def sizes(source: Source, after: int) -> dict[str, Any]:
    """Bytes against those of the source, and of the model that the first step ever read."""
    before = source.checkpoint.bytes
    found = {
        "model_bytes_before": before,
        "model_bytes_after": after,
        "keep_model_bytes": after / before,
    }
    recorded = source.lineage
    if recorded is not None and recorded.steps:
        original = recorded.steps[0].scores.get("model_bytes_before")
        if isinstance(original, int):
            found["keep_original_bytes"] = after / original
    return found


def record(
    partial: Path,
    call: Call,
    plan: Plan,
    job: Job,
    figures: Mapping[str, Any],
    verdict: Verdict,
    compared: Comparison | None,
) -> None:
    """Append this step to the lineage of its source."""
    config: Any = plan.config
    step = lineage.Step(
        method=call.name,
        config=config.model_dump(mode="json"),
        versions=lineage.versions(),
        seed=getattr(config, "seed", None),
        threads=torch.get_num_threads(),
        data_hash=call.origin.data_hash or plan.data_hash,
        scores=scores_of(
            {**figures, **call.origin.facts, **_calibration(call, plan, job)}, verdict, compared
        ),
    )
    known = job.source.lineage
    base = lineage.Base(name=job.source.name, hash=job.source.hash) if known is None else known.base
    steps = () if known is None else known.steps
    lineage.write(partial, base, (*steps, step))


def scores_of(figures: Mapping[str, Any], verdict: Verdict, compared: Comparison | None) -> dict[str, Any]:
    """What was measured: figures, what reading back showed, and what tasks say."""
    judged = {} if compared is None else {"comparison": compared.summary()}
    status = NOT_JUDGED if compared is None else compared.status
    # "verdict" is that of reading back; "status" is what tasks say.
    checked = {
        "verdict": verdict.to_dict(),
        "evaluated": compared is not None,
        "status": status if verdict.passed else FAIL,
    }
    return {**figures, **judged, **checked}


def _calibration(call: Call, plan: Plan, job: Job) -> dict[str, Any]:
    """The name of the text that was read; its hash is the step's `data_hash`."""
    text = job.inputs.calibration
    read = call.method.calibration and plan.data_hash is not None and not plan.changes_nothing
    return {"calibration": text.name} if text is not None and read else {}


def card_of(
    job: Job,
    target: Path,
    description: Description,
    figures: Mapping[str, Any],
    compared: Comparison | None,
    needs_kanna: bool,
) -> card.Card:
    known = job.source.lineage
    judged = (
        "Written and read back; not judged on a task." if compared is None else f"Verdict: {compared.status}."
    )
    rows = [
        *description.rows,
        ("bytes of the whole model kept", f"{figures['keep_model_bytes']:.4f}"),
        ("bytes before", f"{figures['model_bytes_before']:,}"),
        ("bytes after", f"{figures['model_bytes_after']:,}"),
    ]
    if "keep_original_bytes" in figures:
        rows.append(("bytes kept of the original base", f"{figures['keep_original_bytes']:.4f}"))
    tables = [
        card.Table(table.title, [column.lstrip("<>") for column in table.columns], table.rows)
        for table in description.tables
    ]
    tables.append(card.Table("Size", ("what", "value"), rows))
    if compared is not None:
        tables.append(card.Table("On its tasks", *comparison_rows(compared)))
    return card.Card(
        title=target.name,
        base_model=job.source.name if known is None else known.base.name,
        summary=f"{description.summary.replace('{base}', job.source.name)} {judged}",
        tables=tables,
        tags=description.tags,
        needs_kanna=needs_kanna,
        source=job.source.directory,
    )
