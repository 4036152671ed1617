import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kanna

_LEAN = """
import sys
import kanna
heavy = {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
kanna.InputError, kanna.__version__, dir(kanna)
assert "torch" not in sys.modules
assert callable(kanna.lora_targets)
assert "torch" in sys.modules
"""

# transformers first, kanna later: the loader is there all the same.
_LATE = """
import transformers.quantizers.auto as auto
assert "kanna" not in auto.AUTO_QUANTIZER_MAPPING
import kanna
assert auto.AUTO_QUANTIZER_MAPPING["kanna"].__name__ == "KannaQuantizer"
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["kanna"].__name__ == "KannaConfig"
"""


@pytest.mark.parametrize("code", [_LEAN, _LATE], ids=["lean", "late"])
def test_import(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert kanna.__version__ == project["version"]


def test_public_names_exist() -> None:
    assert set(kanna._LAZY) <= set(kanna.__all__)
    for name in kanna.__all__:
        assert getattr(kanna, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = kanna.lod
    assert set(kanna.__all__) <= set(dir(kanna))
