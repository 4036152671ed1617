import shutil
from collections.abc import Callable
from pathlib import Path

import families
import pytest
from letter_rows import lines, rows_of

import kanna

bases, text = families.bases, families.text


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("data") / "train.jsonl", rows_of(7, 0))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("other") / "train.jsonl", rows_of(3, 1))


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("asked") / "test.jsonl", rows_of(7, 2, 24))


@pytest.fixture(scope="session")
def quantised(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Directory of a tiny model of whole numbers by family name; made once, read only."""
    root, made = tmp_path_factory.mktemp("quantised"), {}

    def base(family: str) -> Path:
        if family not in made:
            config = kanna.QuantizeConfig(bits=3, group=8, method="minmax")
            made[family] = root / family
            kanna.quantize(bases(family), made[family], config)
        return made[family]

    return base


@pytest.fixture(scope="session")
def tuned(
    quantised: Callable[[str], Path], data: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with three sets: law and support of channels, fine of groups; none is in use. Read only."""
    base = tmp_path_factory.mktemp("tuned") / "base"
    shutil.copytree(quantised("llama"), base)
    for name, file, by in (("law", data, "channel"), ("support", other, "channel"), ("fine", data, "group")):
        kanna.tune(base, kanna.TuneConfig(data=file, name=name, granularity=by, steps=6, rows=8))
    return base


@pytest.fixture
def base(tuned: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(tuned, tmp_path / "base"))
