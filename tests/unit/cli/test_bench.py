"""kanna bench on small models."""

import json
from pathlib import Path

import pytest

from kanna.measure.bench import BenchOptions, bench
from kanna.measure.energy import NotMeasured

QUICK = ("--new-tokens", 3, "--repeats", 2, "--warmup", 1, "--context", 8, "--no-memory", "-q")


def test_what_is_measured_computed_and_estimated_stands_apart(kanna, base):
    ran = kanna("bench", base, *QUICK, "--batch", "1,2", "--estimate-energy", 10, "--json")
    assert ran.code == 0
    one = ran.json["models"][0]
    assert [(s["batch"], s["context"]) for s in one["settings"]] == [(1, 8), (2, 8)]
    for setting in one["settings"]:
        assert set(setting) == {"batch", "context", "measured", "computed", "estimated"}
        assert setting["measured"]["decode"]["count"] == 2 * 2  # rounds times steps after the first token
        assert setting["estimated"]["joules_per_token"] > 0
        assert setting["computed"]["bandwidth"] == pytest.approx(
            setting["computed"]["bytes_per_token"] * setting["batch"] / setting["measured"]["decode"]["p50"]
        )
    assert one["bytes_on_disk"] == sum(p.stat().st_size for p in base.glob("*.safetensors")) - _header(base)
    assert one["memory"] is None


def _header(directory: Path) -> int:
    with (directory / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_bytes_of_a_decode_step_by_hand(kanna, base):
    """Hidden 32, 2 layers, 4 heads of which 2 are of keys and values, mlp 64, vocabulary 96, tied."""
    per_layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    weights = 96 * 32 + 2 * per_layer + 32
    cache = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, width, context
    setting = kanna("bench", base, *QUICK, "--json").json["models"][0]["settings"][0]
    assert setting["computed"]["bytes_per_token"] == 4 * (weights + cache)


def test_energy_is_not_guessed(base):
    meters = [NotMeasured("RAPL packages", "no counter here")]
    options = BenchOptions(contexts=(8,), new_tokens=3, repeats=2, memory=False)
    found = bench(base, options=options, meters=meters).to_dict()
    setting = found["models"][0]["settings"][0]
    assert setting["measured"]["joules_per_token"] == {"RAPL packages": None}
    assert setting["estimated"]["joules_per_token"] is None
    assert found["meters"] == {"RAPL packages": "no counter here"}


def test_two_models_take_turns(kanna, base, small):
    found = kanna("bench", small, "--against", base, *QUICK, "--json").json
    assert [one["model"] for one in found["models"]] == ["small", "base"]
    middle, low, high = found["ratios"][0]["decode"]
    assert low <= middle <= high


def test_one_name_of_two_directories_is_told_apart(kanna, base, shared_base):
    found = kanna("bench", base, "--against", shared_base, *QUICK, "--json").json
    names = [one["model"] for one in found["models"]]
    assert len(set(names)) == 2 and all(name.endswith("base") for name in names)


def test_memory_is_that_of_a_process_of_its_own(kanna, base):
    words = ("--new-tokens", 2, "--repeats", 1, "--warmup", 0, "--context", 8, "--json", "-q")
    memory = kanna("bench", base, *words).json["models"][0]["memory"]
    assert memory["host_bytes"] >= memory["imported_bytes"] > 50_000_000
    assert memory["device_bytes"] is None


def test_results_are_written_whole_and_not_replaced(kanna, base, tmp_path):
    out = tmp_path / "results"
    assert kanna("bench", base, *QUICK, "--out", out).code == 0
    path = out / "bench-base.json"
    assert json.loads(path.read_text())["kind"] == "bench"
    again = kanna("bench", base, *QUICK, "--out", out)
    assert again.code == 2 and "--force" in again.err
    assert kanna("bench", base, *QUICK, "--out", out, "--force").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--context", "1000"),
        ("--batch", "0"),
        ("--batch", "1,x"),
        ("--repeats", "-1"),
        ("--new-tokens", "1"),
        ("--concurrency", "0"),
        ("--context", "8", "--device", "cuda:99"),
        ("--context", "8", "--dtype", "int3"),
        ("--context", "8", "--price", "missing.yaml"),
    ],
)
def test_bad_requests(kanna, base, words):
    ran = kanna("bench", base, "--no-memory", "-q", *words)
    assert ran.code == 2 and "Traceback" not in ran.err and ran.out == ""
