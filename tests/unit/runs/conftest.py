import sys
from pathlib import Path

# The tiny models of the checkpoint tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
