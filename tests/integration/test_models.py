"""A selection of families through every verb, against loops of their own; docs/models.md holds them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILDER = ROOT.parent / "shared" / "families" / "zoo.py"
pytestmark = [pytest.mark.shared, pytest.mark.slow]
# What each is here for, and which checks are refused.
FAMILIES = {
    "llama": set(),
    "gpt_neo": set(),  # a window that masks do not tell of
    "mamba2": set(),  # a recurrence that padding runs through
    "albert_cls": {"answers", "text"},  # one block run many times
    "deberta_v2_cls": {"answers", "text"},  # a block that returns several values
    "bert_model": {"letters", "words", "answers", "text"},  # no head, no loss
    "gemma3_mm": set(),  # names in files that are not the class's
}


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BUILDER.is_file():
        pytest.skip("../shared/families is not here")
    folder = tmp_path_factory.mktemp("families")
    environment = {**os.environ, "FAMILY_ROOM": str(folder)}
    subprocess.run(
        [sys.executable, str(BUILDER), *FAMILIES], env=environment, check=True, capture_output=True
    )
    return folder / "zoo"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_gives_what_a_plain_loop_gives(family: str, room: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    words = [
        str(ROOT / "scripts" / "models_table.py"),
        str(room),
        "--only",
        family,
        "--results",
        str(results),
    ]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    checks = json.loads(results.read_text())[family]
    refused = {name for name, (status, _) in checks.items() if status == "refused"}
    wrong = {name: found for name, found in checks.items() if found[0] in ("wrong", "crash")}
    assert not wrong and refused == FAMILIES[family]
