from pathlib import Path

import pytest
import torch
from merge_models import save_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two models like it, each in a dtype of its own."""
    place = tmp_path_factory.mktemp("models")
    base = save_model(place / "base", 0, torch.bfloat16)
    return {
        "base": base,
        "a": save_model(place / "a", 1, torch.float16, base),
        "b": save_model(place / "b", 2, torch.float32, base),
    }
