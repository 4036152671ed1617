import json
import random
from pathlib import Path

import families
import pytest
import tiny

bases, text = families.bases, families.text


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows: some letters, and the one that a rule gives."""
    draw = random.Random(0)
    lines = []
    for number in range(40):
        prompt = tiny.letters(draw.randrange(4, 12), number)
        following = tiny.LETTERS[(tiny.LETTERS.index(prompt[-1]) * 7 + 1) % len(tiny.LETTERS)]
        lines.append(json.dumps({"prompt": prompt, "answer": following * 2}))
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
