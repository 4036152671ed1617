"""The cache keeps to its limit: what was used longest ago goes, what is in use stays."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from kanna.errors import InputError
from kanna.runs.cache_limit import LIMIT, LOCK, cache_limit, trim_cache


def entry(cache: Path, name: str, size: int, used: float) -> Path:
    path = cache / "statistics" / name
    path.mkdir(parents=True)
    (path / "survey-000.safetensors").write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        entry(tmp_path, name, 1000, 1000.0 + number)
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra/x.safetensors").write_bytes(bytes(1000))
    os.utime(tmp_path / "spectra/x.safetensors", (1001.5, 1001.5))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious").write_bytes(bytes(10_000))
    return tmp_path


def left(cache: Path) -> set[str]:
    return {path.name for kind in ("statistics", "spectra") for path in (cache / kind).iterdir()}


@pytest.mark.parametrize(
    ("limit", "stays"),
    [
        ("4000", {"a", "b", "c", "x.safetensors"}),
        ("3KB", {"b", "c", "x.safetensors"}),
        ("2k", {"c", "x.safetensors"}),
        ("1000", {"c"}),
        ("0", set()),
    ],
)
def test_the_oldest_go_first_and_nothing_else(
    cache: Path, limit: str, stays: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, limit)
    trimmed = trim_cache(cache)
    assert left(cache) == stays and (cache / "mine/precious").exists()
    assert trimmed.bytes == 1000 * len(stays) and trimmed.removed == 4000 - trimmed.bytes


def test_what_is_in_use_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "0")
    with FileLock(cache / "statistics/a" / LOCK):
        assert trim_cache(cache).bytes == 1000
        assert left(cache) == {"a"} and (cache / "statistics/a/survey-000.safetensors").exists()


def test_without_a_word_it_is_a_tenth_of_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT, raising=False)
    monkeypatch.setattr("kanna.runs.cache_limit.free_bytes", lambda _: 16_000)
    assert cache_limit(cache) == 2000
    assert cache_limit(cache / "absent") == 1600


@pytest.mark.parametrize("word", ["much", "-1", "10 XB"])
def test_what_is_no_number_is_refused(cache: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, word)
    with pytest.raises(InputError, match="20GB"):
        trim_cache(cache)


def test_a_run_that_waits_for_what_is_removed_makes_it_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "0")
    trim_cache(cache)
    with FileLock(cache / "statistics/a" / LOCK):
        (cache / "statistics/a/survey-000.safetensors").write_bytes(bytes(10))
        assert trim_cache(cache).bytes == 10
    assert not list((cache / "statistics").glob("*.gone"))


def test_what_an_earlier_removal_left_goes_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "3000")
    (cache / "statistics/a").rename(cache / "statistics/z.gone")
    assert trim_cache(cache).removed == 1000
    assert "z.gone" not in left(cache)
