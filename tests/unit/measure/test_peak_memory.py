"""Peak memory of this process, also where the module `resource` does not exist."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from kanna.measure import memory
from kanna.measure.memory import peak_resident

# An import hook that knows none of the modules that only Unix has; then everything of kanna is imported.
_WITHOUT_UNIX = """
import sys
from importlib import import_module
from pkgutil import walk_packages

import matplotlib.figure, torch, transformers, typer  # what other libraries import is their business

UNIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "<frozen importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        importer = frame.f_globals.get("__name__", "")
        if name in UNIX and importer.startswith("kanna"):
            raise ModuleNotFoundError(f"{importer} imports {name}", name=name)

for name in UNIX:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
import kanna
names = [module.name for module in walk_packages(kanna.__path__, "kanna.")]
assert len(names) > 100
for name in names:
    if not name.endswith("__main__"):
        import_module(name)
"""


def test_the_peak_is_at_least_what_is_in_memory_now() -> None:
    now = psutil.Process().memory_info().rss
    assert 0.9 * now < peak_resident() < psutil.virtual_memory().total


def test_a_small_process_of_a_large_one_is_small() -> None:
    """What the process that starts it has in memory is not its own."""
    ballast = b"1" * 300_000_000
    words = "from kanna.measure.memory import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert psutil.Process().memory_info().rss > len(ballast)
    assert 5_000_000 < int(done.stdout) < 200_000_000


def test_without_proc_the_system_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nowhere")
    assert 0.9 * psutil.Process().memory_info().rss < peak_resident() < psutil.virtual_memory().total


def test_without_resource_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules makes an import fail as if the module were not there."""
    information = namedtuple("information", "rss peak_wset")(1, 123_456)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: information)
    assert peak_resident() == 123_456


def test_no_module_needs_one_that_only_unix_has() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_UNIX], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
