import sys
from pathlib import Path

for folder in ("models", "lowrank", "checkpoint"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
