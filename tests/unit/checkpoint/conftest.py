import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import FAMILIES, compress, save_base


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """(name, base directory, compressed directory); read only."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    base = save_base(name, root / "base")
    return name, base, compress(base, root / "out", FAMILIES[name])


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save_base("llama", tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture
def llama(llama_base: Path, tmp_path: Path) -> Path:
    """A compressed directory that a test may damage."""
    return compress(llama_base, tmp_path / "out", FAMILIES["llama"])


@pytest.fixture
def edit_config() -> Callable[[Path, Callable[[dict], object]], None]:
    """Change config.json of a directory in place."""

    def edit(directory: Path, change: Callable[[dict], object]) -> None:
        path = directory / "config.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit
