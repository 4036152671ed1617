"""What a boss reads: how much cheaper a model is, how sure that is, where it was measured; plain words."""

import copy
from pathlib import Path
from typing import Any

import report_samples as samples

from kanna.reporting.report import report

NEW, BASE = 1_746_458, 2_139_648


def bench(request: tuple[float, float, float] | None, repeats: int = 8, **cost: Any) -> Any:
    found = copy.deepcopy(samples.bench())
    found["settings"]["repeats"] = repeats
    if request is not None:
        found["ratios"][0]["request"] = list(request)
    for model, share in zip(found["models"], (1.0, 1.25), strict=True):
        model["computed_cost"] = {"per_million_tokens": 0.5 * share, "break_even_tokens": None} | {
            key: value * share if isinstance(value, float) else value for key, value in cost.items()
        }
        if not cost:
            model["computed_cost"] = None
    return found


def page(place: Path, *benches: Any, **more: Any) -> str:
    within = samples.decision("pass", -0.0012, (-0.0049, 0.0021), -0.01)
    compared = samples.comparison("small", "pass", [samples.task("q.jsonl", 0.99, 0.985, within)], **more)
    results = {f"bench{number}": one for number, one in enumerate(benches)}
    samples.write(place / "R", compared=compared, **results)
    return report([place / "R"], place / "p.html").markdown.read_text(encoding="utf-8")


def card(text: str) -> str:
    """The card alone: what stands before the first section."""
    return text.partition("\n## ")[0].replace("\\", "")


def cost(said: str) -> str:
    """The one line that tells of speed and cost."""
    (line,) = [line for line in card(said).splitlines() if " as fast " in line]
    return line


def test_clearly_faster_is_cheaper_in_per_cent_and_in_the_user_s_money(tmp_path: Path) -> None:
    """1.25 times as fast is 1 - 1/1.25 = 20 % less time, which is what a request costs."""
    one = bench((1.25, 1.1, 1.3), currency="EUR", per_thousand_requests=0.004)
    said = card(page(tmp_path, one))
    assert "20.0 % cheaper: a request 1.25x as fast (1.10x to 1.30x)" in said
    assert "0.625 → 0.500 EUR per million tokens written" in said
    assert "0.00500 → 0.00400 EUR per 1,000 requests of 32 tokens read and 8 written" in said


def test_slower_is_dearer(tmp_path: Path) -> None:
    assert "25.0 % dearer: a request 0.80x as fast" in card(page(tmp_path, bench((0.8, 0.7, 0.9))))


def test_where_speed_shows_no_difference_there_is_no_cheaper(tmp_path: Path) -> None:
    said = cost(page(tmp_path, bench((1.25, 0.9, 1.6), currency="EUR", per_thousand_requests=0.004)))
    assert "Cost: no clear difference: a request 1.25x as fast (0.90x to 1.60x)" in said
    assert "cheaper" not in said and "→" not in said and "0.500" not in said
    assert "The base costs 0.625 EUR per million tokens written, 0.00500 EUR per 1,000 requests of" in said


def test_few_rounds_say_nothing(tmp_path: Path) -> None:
    said = cost(page(tmp_path, bench((1.25, 1.1, 1.3), repeats=3, currency="EUR")))
    assert "fewer than 6 rounds say nothing" in said and "cheaper" not in said
    assert "→" not in said and "The base costs 0.625 EUR per million tokens written." in said


def turned(found: Any) -> Any:
    """As `kanna bench BASE --against MODEL` writes it."""
    found["models"].reverse()
    for kind in ("request", "decode"):
        middle, low, high = found["ratios"][0][kind]
        found["ratios"][0][kind] = [1 / middle, 1 / high, 1 / low]
    return found


def test_a_base_that_was_measured_against_the_model_tells_the_same(tmp_path: Path) -> None:
    one = bench((1.25, 1.1, 1.3), currency="EUR", per_thousand_requests=0.004)
    straight = cost(page(tmp_path / "a", one))
    assert cost(page(tmp_path / "b", turned(one))) == straight and "20.0 % cheaper" in straight


def test_directories_that_are_called_alike_are_found_by_their_bytes(tmp_path: Path) -> None:
    one = bench((1.25, 1.1, 1.3))
    one["models"][0]["model"], one["models"][1]["model"] = "new/demo", "old/demo"
    within = samples.decision("pass", -0.0012, (-0.0049, 0.0021), -0.01)
    both = samples.comparison("demo", "pass", [samples.task("q.jsonl", 0.99, 0.985, within)])
    both["base"]["model"] = "demo"

    def said(place: Path) -> str:
        samples.write(place, compared=both, bench=one)
        return report([place], place / "p.html").markdown.read_text(encoding="utf-8")

    told = said(tmp_path / "a")
    assert "20.0 % cheaper" in card(told) and "1.7 MB, 2.3 ms a decode step" in told
    for model in one["models"]:
        model["bytes_on_disk"] = NEW
    both["base"]["bytes"] = NEW
    assert "Speed and cost: not measured" in card(said(tmp_path / "b")), "nobody knows which is which"


def test_of_several_benches_the_one_that_was_finished_last_counts(tmp_path: Path) -> None:
    times = ("2026-03-02T10:00:00+00:00", "2026-03-02T11:30:00+02:00", None)
    many = [
        bench((speed, 1.1, 3.0)) | {"finished": at} for speed, at in zip((2.0, 1.25, 1.6), times, strict=True)
    ]
    assert "50.0 % cheaper" in card(page(tmp_path, *many))


def test_a_currency_that_nobody_wrote_is_not_made_up(tmp_path: Path) -> None:
    said = card(page(tmp_path, bench((1.25, 1.1, 1.3), currency="")))
    assert "0.625 → 0.500 per million tokens written." in said
    assert "USD" not in said and "EUR" not in said


def test_an_older_bench_tells_of_decoding(tmp_path: Path) -> None:
    said = card(page(tmp_path, bench(None)))
    assert "32.9 % cheaper: decoding 1.49x as fast" in said and "kanna bench --price" in said


def test_without_a_bench_of_these_two_it_says_how_to_get_one(tmp_path: Path) -> None:
    other = bench((1.25, 1.1, 1.3))
    other["models"][1]["bytes_on_disk"] += 1
    assert "Speed and cost: not measured. Do it with: kanna bench" in card(page(tmp_path, other))


def test_the_page_says_which_models_when_and_where(tmp_path: Path) -> None:
    machine = {"processor": "Quick 9", "cores": 2, "memory_bytes": 24_000_000_000, "accelerators": [],
               "system": "Linux"}  # fmt: skip
    one = {**bench((1.0, 0.9, 1.1)), "finished": "2026-12-01T00:10:00+00:00", "machine": machine}
    said = page(tmp_path, one, finished="2026-11-29T15:23:54+00:00", machine=machine)
    lines = said.split("\n\n")[1:4]
    assert lines == [
        "Models: small, base",
        "Measured: 29 November 2026 to 1 December 2026",
        "Machine: Quick 9, 2 cores, 24.0 GB of memory, no accelerator, Linux",
    ]


def test_results_without_date_and_machine_say_nothing_of_them(tmp_path: Path) -> None:
    said = page(tmp_path)
    assert "Measured:" not in said and "Machine:" not in said


def test_words_that_not_everybody_knows_are_told(tmp_path: Path) -> None:
    apart = {"kl_mean": 0.002, "kl_p99": 0.05, "top1_agreement": 0.98, "tokens": 4096}
    said = page(tmp_path, bench((1.0, 0.9, 1.1)), distribution=apart)
    words = said.partition("## What the words mean")[2].partition("\n## ")[0]
    for word in ("acc", "KL divergence", "interval", "constant answer", "p95", "spread"):
        assert f"| {word} | " in words, word
    assert "greedy" not in words, "a word that is not on the page"
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert 'data-tip="acc: share of rows on which' in html


def test_a_chart_says_whose_speed_shows_no_difference_from_the_base(tmp_path: Path) -> None:
    """Medians of noisy rounds can stand far apart where pairs of rounds tell nothing."""
    for (low, high), alike in (((0.56, 3.62), True), ((1.22, 1.75), False), ((0.4, 0.9), False)):
        one = bench((1.25, 1.1, 1.3))
        one["ratios"][0]["decode"] = [1.04, low, high]
        said = page(tmp_path / str(low), one)
        assert ("No clear difference in speed from the base" in said) is alike
        assert not alike or "stand: small" in said
