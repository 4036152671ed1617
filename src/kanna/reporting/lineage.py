"""The section of one model directory: what it was made from, how, and with what."""

from collections.abc import Mapping
from typing import Any

import yaml

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Details, Figure, Paragraph, Section, Table
from kanna.reporting.wording import filled, seconds, size

_COLUMNS = (">step", "method", ">weights before", ">after", "data read", ">seed", "versions")


def lineage(at: At) -> Section:
    """Base, steps with their full configuration, and hashes of the files."""
    made = at["lineage"]
    data = made.data
    base, steps = data["base"], data["steps"]
    chain = " → ".join([base["name"], *(step["method"] for step in steps), at.name])
    rows = [_step(number, step) for number, step in enumerate(made["steps"].items(), 1)]
    blocks: list[Block] = [
        Paragraph([f"{chain}. The weights of {base['name']} hash to {base['hash'][:16]}."]),
        Table("Steps", *filled(_COLUMNS, rows), MEASURED),
    ]
    if at.data["run"] is not None:
        blocks += _took(at["run"])
    for number, step in enumerate(steps, 1):
        config = yaml.safe_dump(step["config"], allow_unicode=True).strip()
        blocks.append(Details(f"Step {number}, full configuration", config))
    files = "\n".join(f"{digest}  {name}" for name, digest in data.get("files", {}).items())
    blocks += [Details("sha256 of the files", files)] if files else []
    return Section(f"Lineage of {at.name}", blocks)


def _step(number: int, at: At) -> list[Cell]:
    scores = at.get("scores")
    keys = ("model_bytes_before", "model_bytes_after")
    weights = ["" if scores is None else scores.cell(key, size) for key in keys]
    versions = ", ".join(f"{name} {number}" for name, number in (at.data.get("versions") or {}).items())
    return [str(number), at.data["method"], *weights, _data(at.data), at.cell("seed", "d"), versions]


def _data(step: Mapping[str, Any]) -> str:
    """The calibration text by name, where it is known, and the beginning of the hash of what was read."""
    name = (step.get("scores") or {}).get("calibration") or ""
    digest = step.get("data_hash")
    return f"{name} (sha256 {digest[:16]})".strip() if digest else str(name)


def _took(at: At) -> list[Block]:
    sentence: list[str | Figure] = []
    if took := at.cell("seconds", seconds):
        sentence += ["The run took ", took, ". "]
    if peak := at.cell("peak_memory_bytes", size):
        sentence += ["Its peak memory was ", peak, "."]
    return [Paragraph(sentence)] if sentence else []
