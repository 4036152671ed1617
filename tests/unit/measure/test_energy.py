"""Energy counters, on a tree of files that looks like Linux's."""

import sys
import types
from pathlib import Path

import pytest

from kanna.measure.energy import NotMeasured, Reading, nvml_meter, rapl_meter

RANGE = 1_000_000


def package(root: Path, name: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return folder


def test_packages_add_up_and_their_parts_do_not_count_twice(tmp_path):
    first, second = package(tmp_path, "intel-rapl:0", 100), package(tmp_path, "intel-rapl:1", 5000)
    core = package(tmp_path, "intel-rapl:0:0", 50)
    meter = rapl_meter(tmp_path, sample_seconds=60)
    meter.start()
    (first / "energy_uj").write_text("300100")
    (second / "energy_uj").write_text("205000")
    (core / "energy_uj").write_text("900000")
    assert meter.stop() == pytest.approx(0.3 + 0.2)


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    folder = package(tmp_path, "intel-rapl:0", 900_000)
    meter = rapl_meter(tmp_path, sample_seconds=60)
    meter.start()
    (folder / "energy_uj").write_text("50000")
    assert meter.stop() == pytest.approx((RANGE - 900_000 + 50_000) / 1e6)


def test_wrap_arounds_are_seen_by_reading_often(tmp_path):
    folder = package(tmp_path, "intel-rapl:0", 0)
    meter = rapl_meter(tmp_path, sample_seconds=60)
    meter.start()
    for value in (800_000, 600_000, 400_000):  # each less than a whole turn after the one before
        (folder / "energy_uj").write_text(str(value))
        meter._add()
    assert meter.stop() == pytest.approx(2.4)


def test_a_meter_starts_anew(tmp_path):
    folder = package(tmp_path, "intel-rapl:0", 10)
    meter = rapl_meter(tmp_path, sample_seconds=60)
    for value in (100_010, 300_010):
        meter.start()
        (folder / "energy_uj").write_text(str(value))
        found = meter.stop()
    assert found == pytest.approx(0.2)


def test_no_tree_and_broken_counters_say_why(tmp_path):
    absent = rapl_meter(tmp_path / "nowhere")
    assert isinstance(absent, NotMeasured) and "nowhere" in absent.reason
    folder = package(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").write_text("no number")
    broken = rapl_meter(tmp_path)
    assert isinstance(broken, NotMeasured) and "cannot be read" in broken.reason


def test_a_counter_only_root_may_read_says_so(tmp_path, monkeypatch):
    package(tmp_path, "intel-rapl:0", 1)
    honest = Path.read_text

    def refuse(path: Path, *args: object, **kwargs: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return honest(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    found = rapl_meter(tmp_path)
    assert isinstance(found, NotMeasured) and "root" in found.reason


def test_a_meter_that_measures_nothing_gives_no_number():
    with Reading([NotMeasured("RAPL packages", "none")]) as reading:
        pass
    assert reading.joules == {"RAPL packages": None} and reading.seconds >= 0


class Library(types.ModuleType):
    """A pynvml of two devices, of which each counts 1,500 mJ between two looks."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, devices: int, supported: bool = True) -> None:
        super().__init__("pynvml")
        self.devices, self.supported, self.looks = devices, supported, dict.fromkeys(range(devices), 0)

    def nvmlInit(self) -> None:
        return

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.supported:
            raise self.NVMLError("Not Supported")
        self.looks[handle] += 1
        return 10_000 + 1500 * self.looks[handle]


def test_devices_count_millijoules(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Library(2))
    meter = nvml_meter()
    meter.start()
    assert meter.stop() == pytest.approx(2 * 1.5)


@pytest.mark.parametrize(
    ("library", "why"), [(Library(0), "no NVIDIA"), (Library(1, False), "Not Supported")]
)
def test_devices_without_a_counter_say_why(monkeypatch, library, why):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found = nvml_meter()
    assert isinstance(found, NotMeasured) and why in found.reason and found.stop() is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "kanna[energy]" in nvml_meter().reason
