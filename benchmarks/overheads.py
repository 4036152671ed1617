"""What `kanna lowrank --task` and `kanna compare` do beside computing: hashes, readings of models and tasks.

    python benchmarks/overheads.py                           SmolLM2-135M of ../shared/zoo/smollm2.py
    python benchmarks/overheads.py --model tiny              the small model that comes with kanna
    python benchmarks/overheads.py --before ../other/src     beside another version of kanna, in turns

`lowrank` compresses the model on a few thousand tokens and ends with the verdict on two short tasks;
`compare` then asks both models again, with nothing in the cache. Each run is a process of its own. Printed
are, for each model directory, how often its headers were opened, its weights hashed and loaded, and how many
times all its bytes were read, loads and hashes included; how often each task file was opened; and the seconds
of the command without the imports of torch and transformers, the median of --repeats: by the clock, and of
the processor, which other work on the machine disturbs less. Files are in the page cache.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
DEMO = SOURCE / "kanna" / "demo"
SHARED = HERE.parent.parent / "shared"
ZOO = Path(os.environ.get("KANNA_ZOO", Path.home() / ".cache" / "kanna-zoo"))


@dataclass(frozen=True)
class Inputs:
    """What the commands are given.

    Args:
        context: Of calibration windows and of the task.
    """

    model: Path
    calibration: Path
    tasks: tuple[Path, ...]
    tokens: int
    context: int

    def lowrank(self, out: Path) -> list[str]:
        how = ["--keep", "0.8", "--tokens", self.tokens, "--context", self.context]
        asked = ["--calibration", self.calibration, *self._asked()]
        return _words("lowrank", self.model, *how, *asked, "--out", out, "--json", "-q")

    def compare(self, other: Path) -> list[str]:
        how = ["--context", self.context, "--json", "-q"]
        return _words("compare", self.model, other, *self._asked(), *how)

    def _asked(self) -> list[object]:
        return [*(word for task in self.tasks for word in ("--task", task)), "--max-drop", "50pt"]


def _words(*words: object) -> list[str]:
    return [str(word) for word in words]


def measured(words: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """Run one command of kanna in this process, counted."""
    import transformers.modeling_utils  # transformers itself is imported lazily

    sys.path.insert(0, str(HERE.parent / "tests" / "unit"))
    from counting import counted

    from kanna.cli.main import main as kanna

    _ = transformers.PreTrainedModel  # imported when first asked for: not a part of the command
    with counted(*tasks) as counts, contextlib.redirect_stdout(io.StringIO()):
        started, cpu = time.perf_counter(), time.process_time()
        code = kanna(list(words))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if code not in (0, 3):
        raise SystemExit(f"kanna {' '.join(words)} ended with code {code}")
    models = {
        str(path): {
            "opens": one.opens,
            "hashes": one.hashes,
            "loads": one.loads,
            "readings": one.readings,
        }
        for path, one in counts.models.items()
        if one.bytes
    }
    return {"seconds": seconds, "cpu": cpu, "models": models, "tasks": list(counts.files.values())}


def in_a_process(source: Path, words: Sequence[str], inputs: Inputs, cache: Path) -> dict[str, Any]:
    """The same in a process of its own, on the kanna in `source`, with an empty cache."""
    environment = {**os.environ, "PYTHONPATH": str(source), "KANNA_CACHE": str(cache)}
    shutil.rmtree(cache, ignore_errors=True)
    asked = json.dumps({"words": list(words), "tasks": _words(*inputs.tasks)})
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", asked]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def one_round(source: Path, inputs: Inputs, scratch: Path) -> dict[str, dict[str, Any]]:
    """Both commands once."""
    out, cache = scratch / "out", scratch / "cache"
    shutil.rmtree(out, ignore_errors=True)
    return {
        "lowrank --task": in_a_process(source, inputs.lowrank(out), inputs, cache),
        "compare": in_a_process(source, inputs.compare(out), inputs, cache),
    }


def describe(command: str, version: str, rounds: Sequence[dict[str, dict[str, Any]]], base: Path) -> str:
    """A line for each model of a command; counts are those of the last round, and the same in all."""
    last = rounds[-1][command]
    seconds, cpu = (median(found[command][key] for found in rounds) for key in ("seconds", "cpu"))
    tasks = ", ".join(map(str, last["tasks"]))
    lines = [f"{command} ({version}): {seconds:.2f} s, {cpu:.2f} s of CPU; task files opened {tasks} times"]
    for path, one in last["models"].items():
        name = "base" if Path(path) == base.resolve() else "other"
        lines.append(
            f"  {name:5s}  opened {one['opens']:2d}   hashed {one['hashes']:.1f}   loaded {one['loads']}   "
            f"bytes read {one['readings']:.2f} times"
        )
    return "\n".join(lines)


def inputs_for(model: str, scratch: Path, rows: int) -> Inputs:
    """Short tasks and a calibration text beside the model that was named."""
    if model == "tiny":
        data = [DEMO / "data" / name for name in ("calibration.jsonl", "questions.jsonl", "heldout.jsonl")]
        found, tokens, context = DEMO / "model", 2048, 64
    else:
        names = ("text/calibration.jsonl", "truthfulqa/task.jsonl", "facts/facts.jsonl")
        data = [SHARED / "data" / name for name in names]
        found, tokens, context = Path(model), 4096, 256
    calibration, *tasks = data
    short = tuple(_first_rows(task, scratch / task.name, rows) for task in tasks)
    return Inputs(found, calibration, short, tokens, context)


def _first_rows(source: Path, target: Path, rows: int) -> Path:
    with source.open(encoding="utf-8") as lines:
        first = "".join(itertools.islice(lines, rows))
    target.write_text(first, encoding="utf-8")
    return target


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ZOO / "smollm2-135m"), help="a directory, or tiny")
    parser.add_argument("--before", type=Path, help="src of another version of kanna")
    parser.add_argument("--rows", type=int, default=40, help="of each of two tasks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.measure:
        print(json.dumps(measured(**json.loads(options.measure))))
        return 0
    versions = {"after" if options.before else "here": SOURCE}
    if options.before:
        versions = {"before": options.before.resolve(), **versions}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        inputs = inputs_for(options.model, scratch, options.rows)
        print(
            f"{inputs.model.name}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, "
            f"{inputs.tokens} calibration tokens, medians of {options.repeats}"
        )
        found: dict[str, list[dict[str, Any]]] = {version: [] for version in versions}
        for _ in range(options.repeats):
            for version, source in versions.items():
                found[version].append(one_round(source, inputs, scratch))
    for command in ("lowrank --task", "compare"):
        for version, rounds in found.items():
            print(describe(command, version, rounds, inputs.model))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
