"""Rows that a tiny model can learn."""

import json
import random
from pathlib import Path

import tiny


def rows_of(factor: int, seed: int, count: int = 48) -> list[dict[str, str]]:
    """Rows of some letters, and the one that a rule gives."""
    draw, made = random.Random(seed), []
    for number in range(count):
        prompt = tiny.letters(draw.randrange(4, 12), 1000 * seed + number)
        following = tiny.LETTERS[(tiny.LETTERS.index(prompt[-1]) * factor + 1) % len(tiny.LETTERS)]
        made.append({"prompt": prompt, "answer": following * 2})
    return made


def lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
