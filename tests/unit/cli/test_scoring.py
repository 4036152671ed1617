"""How the flags of kanna eval change what is right, what it costs and what better is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_the_legacy_flag(kanna: Callable[..., Any], shared_base: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    lines = [{"prompt": f"w1 w{i} w2", "answer": f"w{i}"} for i in range(10, 20)]
    task.write_text("\n".join(map(json.dumps, lines)))
    words = ["eval", shared_base, "--task", task, "--metric", "contains", "--json"]
    shares = [kanna(*words, *more).json["tasks"][0] for more in ([], ["--legacy-contains"])]
    assert shares[0]["value"] < shares[1]["value"] == 1.0
    assert shares[0]["floors"]["answer_in_prompt"] == 1.0
    assert any("legacy rule" in note for note in shares[1]["notes"])
