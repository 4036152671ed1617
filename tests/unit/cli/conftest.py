import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TEXT, save_model

from kanna.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def kanna(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the program in this process."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def shared_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that nobody changes."""
    return save_model(tmp_path_factory.mktemp("shared") / "base")


@pytest.fixture
def base(shared_base: Path, tmp_path: Path) -> Path:
    """A model that a test may damage."""
    return Path(shutil.copytree(shared_base, tmp_path / "base"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("COLUMNS", raising=False)  # tables as wide as where no terminal is


@pytest.fixture(scope="session")
def shared_small(shared_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model that nobody changes."""
    out = tmp_path_factory.mktemp("small") / "small"
    words = ["lowrank", shared_base, "--keep", "0.7", "--method", "plain", "--align", "1", "--out", out, "-q"]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.fixture
def small(shared_small: Path, tmp_path: Path) -> Path:
    """A compressed model that a test may damage."""
    return Path(shutil.copytree(shared_small, tmp_path / "small"))


def listing(directory: Path) -> Sequence[str]:
    """Every path below a directory, with its size."""
    return sorted(
        f"{path.relative_to(directory)} {path.stat().st_size}"
        for path in directory.rglob("*")
        if path.is_file() or path.is_dir()
    )


@pytest.fixture
def unchanged() -> Callable[[Path], Sequence[str]]:
    return listing
