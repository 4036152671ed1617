from pathlib import Path

import pytest
from families import bases, text

__all__ = ["bases", "text"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics shared by all tests that do not ask about them."""
    return tmp_path_factory.mktemp("cache")
