"""Small task files to begin with."""

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
        {"prompt": _MAIL.format("My parcel is three days late."), "choices": _WANTS, "label": 1},
        {"prompt": _MAIL.format("Please end my subscription."), "choices": _WANTS, "label": 2},
        {"prompt": _MAIL.format("The lamp came broken, I want my money."), "choices": _WANTS, "label": 0},
    ],
    "answer": [
        {"prompt": "The order number in 'Where is parcel A-1042?' is", "answer": " A-1042"},
        {"prompt": "The capital of France is", "answer": " Paris"},
        {"prompt": "Question: 12 boxes of 6 eggs. How many eggs?\nAnswer:", "answer": " 72"},
    ],
    "paraphrases": [
        {"prompt": "The capital of France is", "answer": " Paris", "group": "france"},
        {"prompt": "France is governed from", "answer": " Paris", "group": "france"},
        {"prompt": "The capital of Japan is", "answer": " Tokyo", "group": "japan"},
        {"prompt": "Japan is governed from", "answer": " Tokyo", "group": "japan"},
    ],
    "text": [
        {"text": "A passage such as the model reads in your application."},
        {"text": "Another one. A few thousand words in all make perplexity steady."},
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
    if path.suffix not in (".jsonl", ".csv"):
        raise InputError(f"a template cannot be written as {path.name}", "name it .jsonl or .csv")
    if path.exists() and not force:
        raise InputError(f"{path} exists already", "choose another name, or add --force")
    rows = TEMPLATES[kind]
    text = _csv(rows) if path.suffix == ".csv" else "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)
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
