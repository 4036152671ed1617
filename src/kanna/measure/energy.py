"""Energy from counters of the machine. Where there is none it is not measured, and never guessed."""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

POWERCAP = Path("/sys/class/powercap")
# Counters of a busy package wrap around after some minutes; so often is often enough.
_SAMPLE_SECONDS = 5.0
# Counters that are never further apart than this share of what one counted in a run are one: a reading may be
# stale by a millisecond, while two of their own go apart, or were apart long before.
_APART = 0.05
_DIE = re.compile(r"-die-\d+$")


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


@dataclass(frozen=True)
class Zone:
    """A counter of Linux (powercap).

    Args:
        path: The file that counts microjoules.
        limit: The number after which it begins again.
        part: What it counts: of zones of one part some may show one and the same counter.
    """

    path: Path
    limit: int
    part: tuple[str, ...]

    def read(self) -> int:
        return int(self.path.read_text())

    def since(self, before: int, now: int) -> int:
        """Microjoules between two readings."""
        return now - before if now >= before else now - before + self.limit


class RaplMeter:
    """Counters of Linux (powercap): processor packages, and the memory beside them where it is counted.

    A package's counter holds those of its cores and graphics. Processors of several dies may show the counter
    of the package once for each: which of them do is seen over the whole run, for such a one never lies far
    outside two readings of the other.

    Args:
        zones: Counters that are added.
        sample_seconds: How often they are read, so that no wrap-around is missed.
    """

    name = "RAPL packages"

    def __init__(self, zones: Sequence[Zone], sample_seconds: float) -> None:
        self.reason = ""
        self._every = sample_seconds
        self._groups = [[zone for zone in zones if zone.part == part] for part in {z.part: 0 for z in zones}]
        self._last: dict[Zone, int] = {}
        self._counted: dict[Zone, int] = {}
        self._apart: dict[Zone, int] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._last, self._counted, self._apart = {}, {}, {}
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

    @property
    def _joules(self) -> float:
        own = [
            zone for group in self._groups for zone in group if zone is group[0] or self._is_own(zone, group)
        ]
        return sum(self._counted.get(zone, 0) for zone in own) / 1e6

    def _is_own(self, zone: Zone, group: Sequence[Zone]) -> bool:
        return self._apart.get(zone, 0) > _APART * self._counted.get(group[0], 0)

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self._add()

    def _add(self) -> None:
        with self._lock:
            for group in self._groups:
                try:
                    found = [(zone, zone.read()) for zone in group]
                    again = group[0].read() if len(group) > 1 else found[0][1]
                except (OSError, ValueError) as error:
                    # One look missed may hide a wrap-around: from then on nothing is known.
                    self.reason = f"{group[0].path} could no longer be read: {error}"
                    return
                first, began = found[0]
                for zone, now in found:
                    step = zone.since(self._last.get(zone, now), now)
                    self._counted[zone] = self._counted.get(zone, 0) + step
                    self._last[zone] = now
                    outside = _outside(first, now, began, again)
                    self._apart[zone] = max(self._apart.get(zone, 0), outside)


def _outside(zone: Zone, now: int, began: int, again: int) -> int:
    """Microjoules from a reading to the nearer of two of a zone; 0 for one that lies between them."""
    if zone.since(began, now) <= zone.since(began, again):
        return 0
    return min(zone.since(now, began), zone.since(again, now))


def rapl_meter(root: Path = POWERCAP, sample_seconds: float = _SAMPLE_SECONDS) -> Meter:
    """The meter of this machine's processor packages and of their memory, or why there is none."""
    packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
    if not packages:
        return NotMeasured("RAPL packages", f"no energy counter in {root}")
    zones = []
    for package in packages:
        for place in (package, *_memory_of(package)):
            try:
                zones.append(_zone(place, package))
            except PermissionError:
                why = f"{place / 'energy_uj'} may not be read (root only on most systems)"
                return NotMeasured("RAPL packages", why)
            except (OSError, ValueError) as error:
                return NotMeasured("RAPL packages", f"{place} cannot be read: {error}")
    return RaplMeter(zones, sample_seconds)


def _zone(place: Path, package: Path) -> Zone:
    """Dies of one package are one part; so is the memory beside them."""
    limit = int((place / "max_energy_range_uj").read_text())
    of = _DIE.sub("", _label(package)) or package.name
    zone = Zone(place / "energy_uj", limit, (of, "" if place == package else _label(place), str(limit)))
    zone.read()
    return zone


def _is_package(place: Path) -> bool:
    """Whether a zone is no part of another, and not the whole platform ("psys"), which stands beside them."""
    return place.name.count(":") == 1 and _label(place) != "psys"


def _memory_of(package: Path) -> list[Path]:
    """Zones of a package that its counter does not hold: in it, or linked beside it, as systems show them."""
    parts = [*package.glob(f"{package.name}:*"), *package.parent.glob(f"{package.name}:*")]
    alone = {part.resolve(): part for part in reversed(parts)}
    return sorted(part for part in alone.values() if _label(part) == "dram")


def _label(place: Path) -> str:
    """What a zone calls itself."""
    try:
        return (place / "name").read_text().strip()
    except OSError:
        return ""


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
