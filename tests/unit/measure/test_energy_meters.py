"""Meters on a tree of files that looks like powercap, and on a library that looks like pynvml."""

import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from kanna.measure.energy import Meter, NotMeasured, Reading, nvml_meter, rapl_meter

RANGE = 2_000_000


def zone(root: Path, folder: str, microjoules: int, name: str = "package-0") -> Path:
    """A zone of powercap; its counter."""
    place = root / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    counter = place / "energy_uj"
    counter.write_text(f"{microjoules}\n")
    return counter


def joules(meter: Meter, change: Callable[[], object]) -> float | None:
    meter.start()
    change()
    return meter.stop()


def test_several_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    counters = [zone(tmp_path, f"intel-rapl:{i}", 1000 * i, f"package-{i}") for i in range(3)]
    parts = [
        zone(tmp_path, "intel-rapl:0:0", 7, "core"),
        zone(tmp_path / "intel-rapl:1", "intel-rapl:1:0", 7, "uncore"),
    ]

    def work() -> None:
        for i, counter in enumerate(counters):
            counter.write_text(str(1000 * i + 100_000 * (i + 1)))
        for part in parts:
            part.write_text("1500000")

    assert joules(rapl_meter(tmp_path, 60), work) == pytest.approx(0.1 + 0.2 + 0.3)


@pytest.mark.parametrize("linked", [False, True])
def test_memory_is_beside_its_package_and_counts_once(tmp_path: Path, linked: bool) -> None:
    """It lies in the folder of the package, and systems link it beside as well."""
    package = zone(tmp_path, "intel-rapl:0", 5)
    memory = zone(tmp_path / "intel-rapl:0", "intel-rapl:0:1", 5, "dram")
    if linked:
        (tmp_path / "intel-rapl:0:1").symlink_to(memory.parent)

    def work() -> None:
        package.write_text("400005")
        memory.write_text("90005")

    assert joules(rapl_meter(tmp_path, 60), work) == pytest.approx(0.4 + 0.09)


@pytest.mark.parametrize(
    ("begins", "steps", "expected"),
    [
        ((5_000, 5_000), (400_000, 400_000), 0.4),  # one counter, shown twice
        ((5_000, 5_000), (400_000, 300_000), 0.7),  # two that began alike
        ((5_000, 90_000), (400_000, 400_000), 0.8),  # two that went alike
        ((RANGE - 1_000, RANGE - 1_000), (400_000, 400_000), 0.4),  # one that began again
        ((5_000, 5_000, 5_000, 5_000), (400_000,) * 4, 0.4),
    ],
)
def test_dies_that_show_the_counter_of_their_package_count_once(
    tmp_path: Path, begins: tuple[int, ...], steps: tuple[int, ...], expected: float
) -> None:
    dies = [zone(tmp_path, f"intel-rapl:{i}", began, f"package-0-die-{i}") for i, began in enumerate(begins)]
    meter = rapl_meter(tmp_path, 60)

    def work() -> None:
        for die, began, step in zip(dies, begins, steps, strict=True):
            die.write_text(str((began + step) % RANGE))

    assert joules(meter, work) == pytest.approx(expected)


@pytest.mark.parametrize("stale", [-1_500, 1_500])
@pytest.mark.parametrize("look", [0, 1])
def test_one_stale_reading_makes_no_second_die(tmp_path: Path, stale: int, look: int) -> None:
    """Whether it is the first reading or the last, and behind the other die's or ahead of it."""
    first, mirror = (zone(tmp_path, f"intel-rapl:{i}", 5_000, f"package-0-die-{i}") for i in range(2))
    mirror.write_text(str(5_000 + (stale if look == 0 else 0)))
    meter = rapl_meter(tmp_path, 60)

    def work() -> None:
        first.write_text("405000")
        mirror.write_text(str(405_000 + (stale if look == 1 else 0)))

    assert joules(meter, work) == pytest.approx(0.4)


def test_packages_that_go_alike_are_two(tmp_path: Path) -> None:
    counters = [zone(tmp_path, f"intel-rapl:{i}", 0, f"package-{i}-die-0") for i in range(2)]
    assert joules(
        rapl_meter(tmp_path, 60), lambda: [counter.write_text("100000") for counter in counters]
    ) == pytest.approx(0.2)


def test_a_counter_that_moves_between_two_looks_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a real one does: each reading is a little later than the one before."""
    dies = [zone(tmp_path, f"intel-rapl:{i}", 0, f"package-0-die-{i}") for i in range(2)]
    read, now = Path.read_text, [0]

    def read_text(path: Path, *args: object, **named: object) -> str:
        if path in dies:
            now[0] += 1_000
            return str(now[0])
        return read(path, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    meter = rapl_meter(tmp_path, 60)
    began = now[0]
    assert joules(meter, lambda: now.__setitem__(0, began + 500_000)) == pytest.approx(0.5, abs=0.01)


def test_the_whole_platform_is_not_added_to_its_packages(tmp_path: Path) -> None:
    package, platform = zone(tmp_path, "intel-rapl:0", 0), zone(tmp_path, "intel-rapl:1", 0, "psys")

    def work() -> None:
        package.write_text("400000")
        platform.write_text("900000")

    assert joules(rapl_meter(tmp_path, 60), work) == pytest.approx(0.4)


def test_a_platform_alone_is_no_package(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 0, "psys")
    assert isinstance(rapl_meter(tmp_path), NotMeasured)


def test_a_counter_begins_again_at_its_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", RANGE - 300_000)
    assert joules(rapl_meter(tmp_path, 60), lambda: counter.write_text("200000")) == pytest.approx(0.5)


def test_the_thread_sees_wrap_arounds_between_start_and_stop(tmp_path: Path) -> None:
    """Up to 1.5 J, then round to 1.0 J: without a look in between, 1.0 J would be all."""
    counter = zone(tmp_path, "intel-rapl:0", 0)
    meter = rapl_meter(tmp_path, sample_seconds=0.005)
    looked = [0.0]

    def work() -> None:
        counter_now(counter, "1500000")
        deadline = time.monotonic() + 20
        while meter._joules < 1.5 and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.005)
        looked.append(meter._joules)  # type: ignore[attr-defined]
        counter_now(counter, "1000000")

    assert joules(meter, work) == pytest.approx(1.5 + 1.5)
    assert looked[-1] == pytest.approx(1.5)


def counter_now(counter: Path, microjoules: str) -> None:
    """Replace a counter whole: a reader never sees an empty file, which the kernel's never is."""
    new = counter.with_name("new")
    new.write_text(microjoules)
    new.replace(counter)


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who is not root; mode bits do not stop root, who may run these tests."""
    read = Path.read_text

    def read_text(path: Path, *args: object, **named: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)


def test_a_counter_that_may_not_be_read_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 1)
    refused(monkeypatch)
    found = rapl_meter(tmp_path)
    assert isinstance(found, NotMeasured)
    assert "may not be read" in found.reason and str(counter) in found.reason
    assert joules(found, lambda: None) is None


def test_a_counter_that_fails_while_measuring_gives_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was added up before may lack a wrap-around, and is not told."""
    counter = zone(tmp_path, "intel-rapl:0", 1)
    meter = rapl_meter(tmp_path, 60)
    counter.write_text("5000")

    assert joules(meter, counter.unlink) is None
    assert "could no longer be read" in meter.reason
    assert joules(meter, lambda: counter.write_text("9000")) is None


@pytest.mark.parametrize("content", ["", "many", "1.5"])
def test_a_counter_of_no_whole_number_is_a_reason(tmp_path: Path, content: str) -> None:
    zone(tmp_path, "intel-rapl:0", 1).write_text(content)
    found = rapl_meter(tmp_path)
    assert isinstance(found, NotMeasured) and "cannot be read" in found.reason


def test_no_tree_is_a_reason(tmp_path: Path) -> None:
    found = rapl_meter(tmp_path / "powercap")
    assert isinstance(found, NotMeasured) and str(tmp_path / "powercap") in found.reason


class Nvml(types.ModuleType):
    """pynvml with counters in millijoules that a test sets; None where the device has none."""

    class NVMLError(Exception):
        pass

    def __init__(self, *counters: int | None, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.counters, self.driver = list(counters), driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        found = self.counters[handle]
        if found is None:
            raise self.NVMLError("Not Supported")
        return found


def with_nvml(monkeypatch: pytest.MonkeyPatch, library: Nvml | None) -> Meter:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return nvml_meter()


def test_devices_are_added_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml(1_000_000, 50)
    meter = with_nvml(monkeypatch, library)

    def work() -> None:
        library.counters = [1_002_500, 300]

    assert joules(meter, work) == pytest.approx(2.5 + 0.25)
    assert joules(meter, lambda: None) == 0


def test_a_device_that_fails_while_measuring_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml(1_000, 1_000)
    meter = with_nvml(monkeypatch, library)

    def work() -> None:
        library.counters = [3_000, None]

    assert joules(meter, work) is None
    assert "Not Supported" in meter.reason


@pytest.mark.parametrize(
    ("library", "why"),
    [
        (Nvml(), "no NVIDIA device"),
        (Nvml(5, None), "Not Supported"),
        (Nvml(5, driver=False), "Driver Not Loaded"),
        (None, "kanna[energy]"),
    ],
)
def test_devices_without_counters_are_a_reason(
    monkeypatch: pytest.MonkeyPatch, library: Nvml | None, why: str
) -> None:
    found = with_nvml(monkeypatch, library)
    assert isinstance(found, NotMeasured) and why in found.reason


def test_what_is_not_measured_is_never_a_number(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 0)
    meters = [rapl_meter(tmp_path, 60), NotMeasured("NVML", "none"), NotMeasured("wall plug", "none")]
    for _ in range(2):
        with Reading(meters) as reading:
            counter.write_text(str(int(counter.read_text()) + 250_000))
        assert reading.joules == {"RAPL packages": pytest.approx(0.25), "NVML": None, "wall plug": None}
