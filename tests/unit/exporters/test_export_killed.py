"""Export and import that are killed at any moment: untouched or whole, and done again to the same bytes."""

from collections.abc import Callable
from pathlib import Path

import killing
import pytest
from quantized_models import llama, quantized

import kanna
from kanna.checkpoint import lineage


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    return quantized(llama(root / "base"), root / "int")


def files(out: Path) -> dict[str, str]:
    """Bytes of everything in a directory."""
    return lineage.file_digests(out) | {"kanna.json": lineage.file_digest(out / "kanna.json")}


def whole_or_not_there(act: Callable[[Path, bool], object], source: Path, place: Path) -> None:
    """Kill `act` before and behind every name that a file takes in it, and do it again.

    Args:
        act: Given the output, and whether an earlier try was killed.
    """
    before = killing.hashes(source)
    count = killing.names_taken(lambda: act(place / "out", False), place / "count")
    expected = files(place / "out")
    assert count > 0
    for point in range(1, count + 1):
        for late in (False, True):
            out = place / f"{point}-{late}" / "out"
            out.parent.mkdir()

            def killed(out: Path = out, point: int = point, late: bool = late) -> None:
                killing.die_at(point, late)
                act(out, False)

            assert killing.in_child(killed) == -9
            done = out.exists()
            assert not done or (late and point == count)
            if not done:
                assert killing.in_child(lambda out=out: act(out, True)) == 0
                left = [path.name for path in out.parent.iterdir()]
                assert [name for name in left if name != "out.run.json"] == ["out"]
            assert files(out) == expected, (point, late)
    assert killing.hashes(source) == before


def test_a_killed_export(packed: Path, tmp_path: Path) -> None:
    whole_or_not_there(lambda out, _: kanna.export_quantized(packed, out, "gptq"), packed, tmp_path)


def test_a_killed_dense_export_goes_on(packed: Path, tmp_path: Path) -> None:
    def act(out: Path, again: bool) -> None:
        begun = (out.with_name("out.kanna-work") / "run.json").is_file()
        kanna.export_dense(packed, out, resume=again and begun)

    whole_or_not_there(act, packed, tmp_path)


def test_a_killed_import(packed: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    kanna.export_quantized(packed, theirs, "gptq")
    whole_or_not_there(lambda out, _: kanna.import_quantized(theirs, out), theirs, tmp_path)
