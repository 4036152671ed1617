import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

import laser_tiny
from tiny_model import TEXT, save_model

from kanna.cli.main import main


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def kanna(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model; read only."""
    return save_model(tmp_path_factory.mktemp("random") / "base", num_hidden_layers=12)


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """One that knows its facts; copy it before changing it."""
    return laser_tiny.train()


@pytest.fixture(scope="session")
def clean(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laser_tiny.save(trained, tmp_path_factory.mktemp("clean") / "clean")


@pytest.fixture(scope="session")
def planted(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with one late matrix damaged."""
    model = copy.deepcopy(trained)
    laser_tiny.damage(model)
    return laser_tiny.save(model, tmp_path_factory.mktemp("planted") / "planted")


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return laser_tiny.facts()


@pytest.fixture(scope="session")
def task(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laser_tiny.write_rows(tmp_path_factory.mktemp("task") / "facts.jsonl", rows)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path
