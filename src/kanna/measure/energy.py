"""Energy from counters of the machine. Where there is none it is not measured, and never guessed."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

POWERCAP = Path("/sys/class/powercap")
# Counters of a busy package wrap around after some minutes; so often is often enough.
_SAMPLE_SECONDS = 5.0


class Meter(Protocol):
    """Adds up energy between `start` and `stop`."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str:
        """Why nothing is measured; empty for a meter that works."""
        ...

    def start(self) -> None: ...

    def stop(self) -> float | None:
        """Joules since `start`; None where nothing is measured."""
        ...


@dataclass(frozen=True)
class NotMeasured:
    """Stands for a meter that is absent."""

    name: str
    reason: str

    def start(self) -> None:
        return

    def stop(self) -> float | None:
        return None


class RaplMeter:
    """Packages' counters of Linux (powercap). Their parts (core, dram inside a package) are in them already.

    Args:
        counters: Package -> a file that counts microjoules, and the range at which it begins again.
        sample_seconds: How often counters are read, so that no wrap-around is missed.
    """

    name = "RAPL packages"

    def __init__(self, counters: Mapping[str, tuple[Path, int]], sample_seconds: float) -> None:
        self.reason = ""
        self._counters, self._every = counters, sample_seconds
        self._last: dict[str, int] = {}
        self._joules = 0.0
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._joules, self._last = 0.0, {}
        self._add()
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._add()
        return None if self.reason else self._joules

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self._add()

    def _add(self) -> None:
        with self._lock:
            for name, (path, limit) in self._counters.items():
                try:
                    now = int(path.read_text())
                except (OSError, ValueError) as error:
                    # One look missed may hide a wrap-around: from then on nothing is known.
                    self.reason = f"{path} could no longer be read: {error}"
                    return
                step = now - self._last.get(name, now)
                self._joules += (step if step >= 0 else step + limit) / 1e6
                self._last[name] = now


def rapl_meter(root: Path = POWERCAP, sample_seconds: float = _SAMPLE_SECONDS) -> Meter:
    """The meter of this machine's processor packages, or why there is none."""
    zones = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
    packages = [path for path in zones if not _is_platform(path)]
    if not packages:
        return NotMeasured("RAPL packages", f"no energy counter in {root}")
    counters = {}
    for package in packages:
        try:
            limit = int((package / "max_energy_range_uj").read_text())
            int((package / "energy_uj").read_text())
        except PermissionError:
            return NotMeasured(
                "RAPL packages", f"{package / 'energy_uj'} may not be read (root only on most systems)"
            )
        except (OSError, ValueError) as error:
            return NotMeasured("RAPL packages", f"{package} cannot be read: {error}")
        counters[package.name] = package / "energy_uj", limit
    return RaplMeter(counters, sample_seconds)


def _is_platform(zone: Path) -> bool:
    """Whether a zone is the whole platform ("psys"), which stands beside the packages and contains them."""
    try:
        return (zone / "name").read_text().strip() == "psys"
    except OSError:
        return False


class NvmlMeter:
    """Total energy counters of NVIDIA devices, in millijoules since the driver was loaded."""

    name = "NVML"

    def __init__(self, library: Any, handles: Sequence[Any]) -> None:
        self.reason = ""
        self._library, self._handles = library, handles
        self._before = 0

    def start(self) -> None:
        self._before = self._total()

    def stop(self) -> float | None:
        now = self._total()
        return None if self.reason else (now - self._before) / 1e3

    def _total(self) -> int:
        try:
            return sum(
                int(self._library.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles
            )
        except self._library.NVMLError as error:
            self.reason = f"no counter: {error}"
            return 0


def nvml_meter() -> Meter:
    """The meter of all NVIDIA devices, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return NotMeasured("NVML", "nvidia-ml-py is not installed (pip install 'kanna[energy]')")
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return NotMeasured("NVML", f"no counter: {error}")
    meter = NvmlMeter(pynvml, handles)
    meter.start()
    if meter.reason:
        return NotMeasured("NVML", meter.reason)
    return meter if handles else NotMeasured("NVML", "no NVIDIA device")


class Reading:
    """Measures a block with several meters.

    with Reading(meters) as reading: ...
    reading.joules -> {meter: joules or None}, reading.seconds
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = meters
        self.joules: dict[str, float | None] = {}
        self.seconds = 0.0

    def __enter__(self) -> Self:
        for meter in self._meters:
            meter.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self.joules = {meter.name: meter.stop() for meter in self._meters}
