"""Peak memory of one model that loads, reads a prompt and writes a few tokens, in a process of its own.

python -m kanna.measure.memory '{"model": ..., "threads": 2, "batches": [1], "contexts": [128], ...}'
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kanna.errors import InputError, KannaError
from kanna.measure.options import BenchOptions
from kanna.measure.results import PeakMemory

_STATUS = Path("/proc/self/status")


def peak_memory(model: Path, options: BenchOptions, threads: int) -> PeakMemory:
    """Run the largest request of `options` in a fresh process and ask what it took.

    Raises:
        InputError: The model cannot go on from what it read.
        KannaError: The process failed; its last words are quoted.
    """
    asked = {**dict(options), "model": str(model), "threads": threads}
    command = [sys.executable, "-m", "kanna.measure.memory", json.dumps(asked)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == InputError.exit_code:
        raise InputError(*json.loads(ran.stdout.strip().splitlines()[-1]))
    if ran.returncode:
        last_words = " ".join(ran.stderr.strip().splitlines()[-3:])
        raise KannaError(f"the process that measures memory failed: {last_words}")
    return PeakMemory(**json.loads(ran.stdout.strip().splitlines()[-1]))


def main() -> None:
    """In the process of its own, whose threads are nobody else's."""
    import torch

    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    try:
        print(json.dumps(_measure(asked).to_dict()))
    except InputError as error:
        print(json.dumps([error.problem, error.remedy]))
        sys.exit(error.exit_code)


def _measure(asked: dict[str, Any]) -> PeakMemory:
    import torch

    from kanna.checkpoint.loader import load
    from kanna.measure.carried import check_decodes
    from kanna.measure.latency import request
    from kanna.models.device import dtype_of

    before = peak_resident()
    device = torch.device(asked["device"])
    place = None if device.type == "cpu" else asked["device"]
    # Checking digests would read all files through memory, which serving does not.
    model: Any = load(asked["model"], dtype=dtype_of(asked["dtype"]), device_map=place, verify=False)[0]
    check_decodes(model, Path(asked["model"]).name, max(asked["batches"]), device)
    ids = torch.ones((max(asked["batches"]), max(asked["contexts"])), dtype=torch.int64, device=device)
    request(model, ids, asked["new_tokens"])
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(host_bytes=peak_resident(), device_bytes=on_device, imported_bytes=before)


def peak_resident() -> int:
    """Largest number of bytes that this program had in memory so far.

    Linux says it as VmHWM, Windows as the peak of the working set. `ru_maxrss` of Linux is no such figure: it
    begins with what the process that started this one had in memory. Other systems count it anew with each
    program; there, and where Linux shows no /proc, it is what is left to ask.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows, where psutil knows the same figure by another name
        import psutil

        return int(psutil.Process().memory_info().peak_wset)  # type: ignore[attr-defined,unused-ignore]
    high = _high_water(_STATUS)
    if high is not None:
        return high
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _high_water(status: Path) -> int | None:
    """VmHWM of Linux in bytes; None where there is no such thing."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None


if __name__ == "__main__":
    main()
