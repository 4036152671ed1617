"""What documents say of the repository is true of it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FLOOR = re.compile(r"^([A-Za-z0-9_-]+)>=([\d.]+)$")


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    assert len(named) > 15
    assert named <= defined, sorted(named - defined)


def test_the_lowest_constraints_are_the_floors_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(match.groups() for one in project["dependencies"] if (match := _FLOOR.match(one)))
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)

    def release(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in (version + ".0.0").split(".")[:3])

    assert len(floors) == len(project["dependencies"])
    assert {name: release(v) for name, v in pinned.items()} == {
        name: release(v) for name, v in floors.items()
    }
