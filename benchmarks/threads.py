"""Threads that sleep while they wait beside threads that spin: on an idle machine, and on a loaded one.

    python benchmarks/threads.py                    two threads, the small model that comes with kanna
    python benchmarks/threads.py --quick            one repeat, less work
    python benchmarks/threads.py --threads 4

Two jobs, each a process of its own: `kanna lowrank` of the model, as the demo does it, and `kanna bench` of
its decoding. Each is run with OMP_WAIT_POLICY PASSIVE (what `kanna` sets) and ACTIVE in turns, who begins
alternates; then the same while as many other processes compute as there are cores. Printed are the medians:
seconds of the first job, its processor's seconds, and tokens per second of the second; and the ratio of
spinning to sleeping. Above 1, sleeping is better.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

DEMO = Path(__file__).resolve().parents[1] / "src" / "kanna" / "demo"
POLICIES = ("PASSIVE", "ACTIVE")
_BUSY = "import numpy as np\na = np.ones((256, 256))\nwhile True: a @ a"


@contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that compute on one thread each."""
    busy = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    others = [subprocess.Popen([sys.executable, "-c", _BUSY], env=busy) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def kanna(policy: str, *words: object) -> tuple[float, float, str]:
    """Seconds, seconds of the processor, and what was printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "kanna", *map(str, words), "-q", "--json"],
        env={**os.environ, "OMP_WAIT_POLICY": policy},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, ran.stdout


def measured(policy: str, threads: int, quick: bool) -> dict[str, float]:
    """Both jobs once."""
    with tempfile.TemporaryDirectory() as place:
        tokens = 1024 if quick else 8192
        job = ("lowrank", DEMO / "model", "--keep", 0.7, "--calibration", DEMO / "data" / "calibration.jsonl",
               "--tokens", tokens, "--out", f"{place}/out", "--threads", threads)  # fmt: skip
        seconds, used, _ = kanna(policy, *job)
    decode = ("bench", DEMO / "model", "--batch", 1, "--context", 32, "--new-tokens", 32, "--repeats", 3,
              "--no-memory", "--threads", threads)  # fmt: skip
    _, _, said = kanna(policy, *decode)
    return {"lowrank s": seconds, "lowrank CPU s": used, "decode tokens/s": speed(json.loads(said))}


def speed(result: dict[str, object]) -> float:
    """Tokens per second of decoding in what `kanna bench` found."""
    found = [value for key, value in walk(result) if key == "decode_tokens_per_second"]
    return float(found[0])


def walk(data: object) -> Iterator[tuple[str, float]]:
    if isinstance(data, dict):
        for key, value in data.items():
            if isinstance(value, int | float):
                yield key, value
            yield from walk(value)
    elif isinstance(data, list):
        for value in data:
            yield from walk(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    for state, others in (("idle", 0), ("loaded", os.cpu_count() or 1)):
        seen: dict[str, list[dict[str, float]]] = {policy: [] for policy in POLICIES}
        with load(others):
            for repeat in range(1 if asked.quick else asked.repeats):
                for policy in POLICIES[:: -1 if repeat % 2 else 1]:
                    seen[policy].append(measured(policy, asked.threads, asked.quick))
        for name in seen["PASSIVE"][0]:
            sleeping, spinning = (median(one[name] for one in seen[policy]) for policy in POLICIES)
            ratio = sleeping / spinning if name.endswith("tokens/s") else spinning / sleeping
            print(
                f"{state:7} {name:16} sleeping {sleeping:8.2f}  spinning {spinning:8.2f}  ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
