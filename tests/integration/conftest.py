"""The data and models beside the repository. Without them these tests are skipped, and say so."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The small trained models."""
    if not (SHARED / "zoo" / "base").is_dir():
        pytest.skip("../shared/zoo is not here")
    return SHARED / "zoo"


@pytest.fixture(scope="session")
def text() -> Path:
    """Calibration and held-out text."""
    if not (SHARED / "data" / "text").is_dir():
        pytest.skip("../shared/data/text is not here")
    return SHARED / "data" / "text"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real pretrained model, where it was made before ($KANNA_ZOO)."""
    home = Path(os.environ.get("KANNA_ZOO", Path.home() / ".cache" / "kanna-zoo"))
    if not (home / "smollm2-135m" / "model.safetensors").is_file():
        pytest.skip(f"{home}/smollm2-135m is not here: make it with ../shared/zoo/smollm2.py")
    return home / "smollm2-135m"
