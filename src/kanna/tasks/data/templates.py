"""Small task files to begin with; what a key means stands in `note`, which no score depends on."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

from kanna.errors import InputError

_MAIL = "Customer: {}\nThe customer wants"
_WANTS = [" a refund", " help with delivery", " to cancel"]
TEMPLATES: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {
            "prompt": _MAIL.format("My parcel is three days late."),
            "choices": _WANTS,
            "label": 1,
            "note": "label is the place of the right choice, counted from 0, or its text",
        },
        {
            "prompt": _MAIL.format("Please end my subscription."),
            "choices": _WANTS,
            "label": 2,
            "note": "the model reads the prompt; the choice it finds likeliest to follow is its answer",
        },
        {
            "prompt": _MAIL.format("The lamp came broken, I want my money."),
            "choices": _WANTS,
            "label": 0,
            "note": "also possible: group (rows of one fact), cost (of a wrong answer), keys of your own",
        },
    ],
    "answer": [
        {
            "prompt": "The order number in 'Where is my parcel? I ordered on May 3.' is",
            "answer": " missing",
            "note": "answer is what the model should write after the prompt",
        },
        {
            "prompt": "The capital of France is",
            "answer": " Paris",
            "note": "scored as greedy unless --metric says otherwise: exact, contains, numeric, f1, ...",
        },
        {
            "prompt": "Question: 12 boxes of 6 eggs. How many eggs?\nAnswer:",
            "answer": " 72",
            "note": 'several right answers: the key answers instead, with a list ["72", "seventy-two"]',
        },
    ],
    "paraphrases": [
        {
            "prompt": "The capital of France is",
            "answer": " Paris",
            "group": "france",
            "note": "rows of one group ask for the same fact in other words",
        },
        {
            "prompt": "France is governed from",
            "answer": " Paris",
            "group": "france",
            "note": "consistency is the share of groups with every row right",
        },
        {
            "prompt": "The capital of Japan is",
            "answer": " Tokyo",
            "group": "japan",
            "note": "kanna task split keeps a group on one side",
        },
        {
            "prompt": "Japan is governed from",
            "answer": " Tokyo",
            "group": "japan",
            "note": "a group counts as one unit when a verdict is reached",
        },
    ],
    "text": [
        {
            "text": "A passage such as the model reads in your application.",
            "note": "text is scored by perplexity: how well the model foresees it",
        },
        {
            "text": "Another one. A few thousand words in all make perplexity steady.",
            "note": "long texts are read in windows of --context tokens",
        },
    ],
}


def new_task(path: str | Path, kind: str = "choice", force: bool = False) -> Path:
    """Write a template; .csv where the name says so, else JSON lines.

    Raises:
        InputError: An unknown kind or suffix, or the file exists.
    """
    path = Path(path)
    if kind not in TEMPLATES:
        raise InputError(f"unknown kind {kind!r}", f"known: {', '.join(TEMPLATES)}")
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"a template cannot be written as {path.name}", "name it .jsonl or .csv")
    if path.exists() and not force:
        raise InputError(f"{path} exists already", "choose another name, or add --force")
    rows = TEMPLATES[kind]
    table = path.suffix.lower() == ".csv"
    text = _csv(rows) if table else "".join(json.dumps(row) + "\n" for row in rows)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror}", "choose another place") from error
    return path


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        choices = {f"choice_{i}": choice for i, choice in enumerate(row.get("choices", []))}
        flat.append({key: value for key, value in row.items() if key != "choices"} | choices)
    into = io.StringIO(newline="")
    writer = csv.DictWriter(into, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    return into.getvalue()
