"""kanna bench as a whole: what it counts by hand, in which order it measures, and what it refuses."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kanna.cli.main import main
from kanna.measure import bench as module
from kanna.measure.bench import BenchOptions, _bytes_read, bench
from kanna.measure.energy import NotMeasured
from kanna.measure.latency import Request
from kanna.measure.results import Setting

QUICK = ("--context", "8", "--new-tokens", "3", "--repeats", "2", "--no-memory", "-q")
NO_METER = (NotMeasured("wall plug", "none"),)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """kanna bench with some words: exit code, output, errors."""
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))

    def bench_with(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bench", *(str(word) for word in words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return bench_with


def result(run: Run, *words: object) -> Any:
    code, out, err = run(*words, *QUICK, "--json")
    assert code == 0, err
    return json.loads(out)


def quick(**changes: Any) -> BenchOptions:
    settings: dict[str, Any] = {"contexts": (8,), "new_tokens": 3, "repeats": 2, "memory": False}
    return BenchOptions(**(settings | changes))


class Scripted:
    """Stands for `request`: notes who was asked what, and gives times of a list, over and over, per model."""

    def __init__(self, *times: Sequence[float]) -> None:
        self.times, self.models, self.prompts = times, [], []  # type: ignore[var-annotated]
        self.asked: list[int] = []

    def __call__(self, model: Any, ids: torch.Tensor, new_tokens: int) -> Request:
        if not any(model is one for one in self.models):
            self.models.append(model)
        who = next(i for i, one in enumerate(self.models) if one is model)
        mine = self.times[who % len(self.times)]
        step = mine[self.asked.count(who) % len(mine)]
        self.asked.append(who)
        self.prompts.append(ids.clone())
        return Request(10 * step, (step,) * (new_tokens - 1))


def test_measured_computed_and_estimated_share_no_key(run: Run, grouped: Path) -> None:
    setting = result(run, grouped)["models"][0]["settings"][0]
    assert set(setting) == {"batch", "context", "measured", "computed", "estimated"}
    assert set(setting["measured"]) == {
        "prefill",
        "decode",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "concurrent_tokens_per_second",
        "joules_per_token",
    }
    assert set(setting["computed"]) == {"bytes_per_token", "bandwidth"}
    assert setting["estimated"] == {"joules_per_token": None}


def test_bytes_on_disk_are_those_of_the_tensors(run: Run, untied: Path) -> None:
    file = (untied / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    assert result(run, untied)["models"][0]["bytes_on_disk"] == len(file) - header


@pytest.mark.parametrize(
    ("batch", "dtype", "size"), [(1, "float32", 4), (3, "float32", 4), (2, "bfloat16", 2)]
)
def test_bytes_per_token_by_hand(
    run: Run, grouped: Path, untied: Path, batch: int, dtype: str, size: int
) -> None:
    """Queries and output 32 x 32, keys and values 16 x 32, three of 64 x 32, two norms; twice, and a norm."""
    layers = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32
    cache = batch * 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads of them, width, context
    for model, tables in ((grouped, 96 * 32), (untied, 93 * 32 + batch * 32)):
        found = result(run, model, "--batch", batch, "--dtype", dtype)["models"][0]["settings"][0]
        expected = size * (layers + tables + cache) / batch
        assert found["computed"]["bytes_per_token"] == pytest.approx(expected)


_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 40}


@pytest.mark.parametrize(
    "config",
    [
        transformers.FalconConfig(**_SMALL, multi_query=True, new_decoder_architecture=False),
        transformers.FalconConfig(**_SMALL, num_kv_heads=2, new_decoder_architecture=True),
        transformers.FalconConfig(**_SMALL, multi_query=False, new_decoder_architecture=False),
        transformers.GPTBigCodeConfig(n_layer=2, n_head=4, n_embd=32, vocab_size=40, multi_query=True),
        transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=40),
        transformers.Qwen3Config(**_SMALL, num_key_value_heads=2, head_dim=16, intermediate_size=48),
    ],
    ids=["falcon_7b", "falcon_40b", "falcon_rw", "bigcode", "gpt2", "qwen3"],
)
def test_keys_and_values_are_those_of_the_cache(config: Any) -> None:
    """What a longer context and a larger batch add is what the model's own cache holds more."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()

    def held(batch: int, context: int) -> int:
        with torch.no_grad():
            cache = model(torch.zeros((batch, context), dtype=torch.int64), use_cache=True).past_key_values
        return sum(4 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)

    assert _bytes_read(model, 3, 21) - _bytes_read(model, 3, 5) == held(3, 21) - held(3, 5) > 0


def test_speeds_and_bandwidth_by_hand(monkeypatch: pytest.MonkeyPatch, grouped: Path) -> None:
    """Steps of 0.1, 0.2, 0.4 s after one that warms up; a prompt takes ten times as long."""
    monkeypatch.setattr(module, "request", Scripted((9.0, 0.1, 0.4, 0.2)))
    options = quick(batches=(4,), warmup=1, repeats=3)
    found = bench(grouped, options=options, meters=NO_METER).models[0].settings[0]
    assert found.measured.decode.p50 == pytest.approx(0.2) and found.measured.decode.count == 3 * 2
    assert found.measured.prefill.p50 == pytest.approx(2.0) and found.measured.prefill.count == 3
    assert found.measured.decode_tokens_per_second == pytest.approx(4 / 0.2)
    assert found.measured.prefill_tokens_per_second == pytest.approx(4 * 8 / 2.0)
    assert found.computed.bandwidth == pytest.approx(found.computed.bytes_per_token * 4 / 0.2)
    assert found.measured.concurrent_tokens_per_second is None


def test_two_models_take_turns_on_one_prompt(
    monkeypatch: pytest.MonkeyPatch, grouped: Path, untied: Path
) -> None:
    """Who begins alternates; all read the same tokens, which both know."""
    script = Scripted((0.1,))
    monkeypatch.setattr(module, "request", script)
    options = quick(warmup=1, repeats=3, batches=(2,), contexts=(60,))
    bench(grouped, against=untied, options=options, meters=NO_METER)
    assert script.asked == [0, 1, 1, 0, 0, 1, 1, 0]
    assert [one.config.vocab_size for one in script.models] == [96, 93]
    first = script.prompts[0]
    assert first.shape == (2, 60) and int(first.max()) < 93 and len(first.unique()) > 20
    assert all(torch.equal(first, one) for one in script.prompts)


def test_ratios_are_of_the_base_over_the_model(
    monkeypatch: pytest.MonkeyPatch, grouped: Path, untied: Path
) -> None:
    """By round 2, 3, 2, 4, 2, 2.5 times as long: the interval of six rounds is from least to most."""
    ours = (0.1, 0.2, 0.1, 0.4, 0.3, 0.2)
    theirs = tuple(one * by for one, by in zip(ours, (2, 3, 2, 4, 2, 2.5), strict=True))
    monkeypatch.setattr(module, "request", Scripted(ours, theirs))
    options = quick(warmup=0, repeats=6, batches=(1, 2))
    found = bench(grouped, against=untied, options=options, meters=NO_METER)
    assert [(one.batch, one.context) for one in found.ratios] == [(1, 8), (2, 8)]
    for one in found.ratios:
        assert one.decode == pytest.approx((2.25, 2.0, 4.0))
        assert one.prefill == pytest.approx((2.25, 2.0, 4.0))


@pytest.mark.parametrize(("repeats", "said"), [(5, "fewer than 6 rounds"), (6, "faster")])
def test_few_rounds_call_nothing_faster(
    monkeypatch: pytest.MonkeyPatch, run: Run, grouped: Path, untied: Path, repeats: int, said: str
) -> None:
    monkeypatch.setattr(module, "request", Scripted((0.1,), (0.2,)))
    words = ("--context", 8, "--new-tokens", 3, "--no-memory", "--warmup", 0, "--repeats", repeats)
    code, out, _ = run(grouped, "--against", untied, *words)
    told = " ".join(out.split())
    assert code == 0 and said in told
    assert ("faster" in told) == (repeats == 6)


def test_ratios_of_real_models_come_with_intervals(run: Run, grouped: Path, untied: Path) -> None:
    found = result(run, grouped, "--against", untied)
    assert [one["model"] for one in found["models"]] == ["grouped", "untied"]
    for part in ("prefill", "decode"):
        middle, low, high = found["ratios"][0][part]
        assert 0 < low <= middle <= high


class Fixed:
    """A meter that finds 6 J in each turn."""

    name, reason = "fixed", ""

    def start(self) -> None:
        return

    def stop(self) -> float | None:
        return 6.0


def test_measured_energy_is_over_new_tokens(grouped: Path) -> None:
    """6 J for 2 prompts of 3 new tokens; a meter that is absent stays without a number beside it."""
    options = quick(batches=(2,))
    found = bench(grouped, options=options, meters=[Fixed(), *NO_METER])
    assert found.models[0].settings[0].measured.joules_per_token == {"fixed": 1.0, "wall plug": None}
    assert found.meters == {"fixed": "", "wall plug": "none"}


def test_an_estimate_is_only_given_when_asked_for(grouped: Path) -> None:
    def setting(watts: float | None) -> Setting:
        return bench(grouped, options=quick(watts=watts), meters=NO_METER).models[0].settings[0]

    without, asked = setting(None), setting(50.0)
    assert without.estimated.joules_per_token is None
    assert without.measured.joules_per_token == asked.measured.joules_per_token == {"wall plug": None}
    least = (
        asked.measured.prefill.p50 + 2 * asked.measured.decode.p50
    )  # of what ran in the time that is estimated from
    assert asked.estimated.joules_per_token is not None
    assert asked.estimated.joules_per_token > 0.5 * 50.0 * least / 3


def test_a_price_is_computed_from_decoding(
    monkeypatch: pytest.MonkeyPatch, run: Run, grouped: Path, untied: Path, tmp_path: Path
) -> None:
    """10 and 5 tokens/s at 3.60 an hour: 100 and 200 a million; 50 spent are back after half a million."""
    monkeypatch.setattr(module, "request", Scripted((0.1,), (0.2,)))
    price = tmp_path / "price.yaml"
    price.write_text("per_hour: 3.6\ncurrency: EUR\none_time: 50")
    ours, theirs = result(run, grouped, "--against", untied, "--price", price)["models"]
    assert ours["computed_cost"]["per_million_tokens"] == pytest.approx(100)
    assert ours["computed_cost"]["break_even_tokens"] == pytest.approx(5e5)
    assert theirs["computed_cost"]["per_million_tokens"] == pytest.approx(200)
    assert theirs["computed_cost"]["break_even_tokens"] is None


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads or measures fails, and not as a bad request does."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    for name in ("load", "request", "peak_memory"):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--context", "63", "--new-tokens", "3"), "cannot read 63 tokens and write 3"),
        (("--context", "8,500"), "positions"),
        (("--batch", "0"), "begin at 1"),
        (("--batch", "1,-2"), "begin at 1"),
        (("--batch", "1,many"), "whole numbers"),
        (("--context", "8,,16"), "whole numbers"),
        (("--context", ""), "whole numbers"),
        (("--repeats", "-3"), "must be at least 1"),
        (("--repeats", "0"), "must be at least 1"),
        (("--warmup", "-1"), "warmup"),
        (("--new-tokens", "1"), "must be at least 2"),
        (("--concurrency", "0"), "must be at least 1"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--device", "abacus"), "abacus"),
        (("--dtype", "int3"), "int3"),
        (("--estimate-energy", "0"), "watts"),
        (("--estimate-energy", "inf"), "watts"),
        (("--price", "absent.yaml"), "absent.yaml"),
        (("--against", "absent"), "absent"),
    ],
)
def test_bad_requests_end_before_any_work(
    run: Run, grouped: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, out, err = run(grouped, *QUICK, *words, "--out", tmp_path / "results")
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in err
    assert out == "" and not (tmp_path / "results").exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("turned", [False, True])
def test_an_encoder_is_refused_on_either_side(run: Run, grouped: Path, encoder: Path, turned: bool) -> None:
    ours, theirs = (grouped, encoder) if turned else (encoder, grouped)
    code, _, err = run(ours, "--against", theirs, *QUICK)
    assert code == 2 and "bench measures causal language models, and encoder is" in " ".join(err.split())


@pytest.mark.usefixtures("no_work")
def test_a_result_is_not_replaced_unasked(run: Run, grouped: Path, tmp_path: Path) -> None:
    there = tmp_path / "bench-grouped.json"
    there.write_text("precious")
    code, _, err = run(grouped, *QUICK, "--out", tmp_path)
    assert code == 2 and "--force" in err and there.read_text() == "precious"


def test_all_positions_can_be_measured(run: Run, grouped: Path) -> None:
    """62 tokens and three new ones, of which the last is never read: 64 positions."""
    code, _, err = run(grouped, "--context", 62, "--new-tokens", 3, "--repeats", 1, "--no-memory", "-q")
    assert code == 0, err


def test_the_file_is_what_json_says(run: Run, grouped: Path, tmp_path: Path) -> None:
    there = tmp_path / "bench-grouped.json"
    there.write_text("old")
    said = result(run, grouped, "--out", tmp_path, "--force")
    written = json.loads(there.read_text())
    assert written.pop("finished")[:2] == "20" and written.pop("machine")["cores"] >= 1
    assert written == said
    assert (said["kind"], said["schema_version"]) == ("bench", 1)
    assert [one.name for one in tmp_path.glob("*json*")] == ["bench-grouped.json"]


def test_a_full_disk_leaves_the_old_result(
    run: Run, grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    there = tmp_path / "bench-grouped.json"
    there.write_text("old")
    assert run(grouped, *QUICK, "--out", tmp_path, "--force")[0] != 0
    assert there.read_text() == "old"
