"""Results as the verbs write them, with whatever texts and numbers a test needs."""

import json
from pathlib import Path
from typing import Any

import report_laser_samples as laser

EVIL = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> \"double\" 'single' ]]> -->"
    " ``` ~~~ `tick` | pipe | [link](javascript:hacked) ![x](http://example.com/x.png) https://example.com"
    " </textarea></pre></script></style> &lt;b&gt; {{ 7 * 7 }} {% raw %} $x$ \\ @name *bold* _it_ \x00 end\n"
    "# heading\n- item\n| a | b |\n|---|---|\n"
)
CJK = "日本語の課題はとても長い名前を持つことがあるので幅を数えなければならない"
LONG = "an_extremely_long_task_name_without_any_place_to_break_" * 3 + ".jsonl"


def decision(
    status: str, difference: float, interval: tuple[float, float], allowed: float, **more: Any
) -> Any:
    return {
        "status": status,
        "difference": difference,
        "interval": list(interval),
        "bound": interval[0],
        "allowed": allowed,
        "confidence": 0.95,
        "p_pass": 0.04,
        "p_fail": 0.9,
        "p_flips": 0.625,
        "rows": 1234,
        "groups": 1234,
        "more_rows": None,
        "tolerance": "1pt",
        "method": "score test of paired proportions",
        "lost": 3,
        "gained": 1,
    } | more


def flip(text: str, direction: str = "lost") -> Any:
    return {
        "row": 7,
        "direction": direction,
        "prompt": text,
        "expected": text,
        "base": text,
        "new": text,
        "change": 1.5,
    }


def task(name: str, base: float, new: float, decided: Any = None, **more: Any) -> Any:
    return {
        "task": name,
        "kind": "choice",
        "metric": "acc",
        "higher_is_better": True,
        "guard": False,
        "rows": 1234,
        "base": base,
        "new": new,
        "base_metrics": {"acc": base},
        "new_metrics": {"acc": new},
        "floors": {"constant": 0.5605, "answer_in_prompt": 0.0312},
        "decision": decided,
        "lost": 3,
        "gained": 1,
        "flips": [],
        "notes": [],
    } | more


def comparison(name: str, status: str, tasks: list[Any], count: int = 1_746_458, **more: Any) -> Any:
    return {
        "schema_version": 1,
        "kind": "compare",
        "base": {"model": "base", "bytes": 2_139_648},
        "model": {"model": name, "bytes": count},
        "confidence": 0.95,
        "status": status,
        "explanation": f"because it is {status}",
        "tasks": tasks,
        "distribution": None,
        "blame": None,
        "notes": [],
        "settings": {},
    } | more


def evaluation(model: str, name: str) -> Any:
    record = {"row": 0, "prompt": "SECRET ROW", "expected": "yes", "predicted": "no", "right": False}
    scored = {
        "task": name,
        "kind": "choice",
        "metric": "acc",
        "higher_is_better": True,
        "rows": 279,
        "value": 0.806451,
        "metrics": {"acc": 0.806451, "log_loss": 0.6884002, "regex:a.b/c~d": 0.25},
        "floors": {"constant": 0.086},
        "notes": [f"note on {name}"],
        "settings": {"context": 64},
        "records": [record | {"values": {"acc": 0.0}}],
    }
    whole = {"schema_version": 1, "kind": "eval", "model": model, "bytes": 1_746_458, "tasks": [scored]}
    return whole | {"run": {"seconds": 1.5}}


def _benched(model: str, count: int, factor: float, estimate: float | None) -> Any:
    settings = [
        {
            "batch": 1,
            "context": context,
            "measured": {
                "prefill": {"p50": 0.0076 * factor, "p95": 0.0081, "p99": 0.0092, "spread": 0.27, "count": 6},
                "decode": {"p50": 0.00233 * factor, "p95": 0.00301, "p99": 0.0142, "spread": 1.8, "count": 6},
                "prefill_tokens_per_second": 4180.8265,
                "decode_tokens_per_second": 429.2494 / factor,
                "concurrent_tokens_per_second": 812.55,
                "joules_per_token": {"RAPL packages": 0.0123456, "NVML": None},
            },
            "computed": {"bytes_per_token": 3574784.0, "bandwidth": 1534473877.5987},
            "estimated": {"joules_per_token": estimate},
        }
        for context in (32, 64)
    ]
    return {
        "model": model,
        "bytes_on_disk": count,
        "memory": {"host_bytes": 421_830_656, "device_bytes": None, "imported_bytes": 400_089_088},
        "settings": settings,
        "computed_cost": {
            "per_million_tokens": 0.5177,
            "break_even_tokens": 563_959_244.56,
            "currency": "EUR",
        },
    }


def bench(model: str = "small", estimate: float | None = 0.0615) -> Any:
    ratio = {"batch": 1, "context": 32, "prefill": [1.05, 0.51, 2.09], "decode": [1.49, 1.22, 1.75]}
    return {
        "schema_version": 1,
        "kind": "bench",
        "models": [_benched(model, 1_746_458, 1.0, estimate), _benched("base", 2_139_648, 1.5, estimate)],
        "ratios": [ratio],
        "meters": {"RAPL packages": "", "NVML": "there is no device"},
        "settings": {"device": "cpu", "dtype": "float32", "threads": 1, "torch": "2.13", "new_tokens": 8},
    }


def lineage(scores: Any = None) -> Any:
    step = {
        "method": "lowrank",
        "config": {"keep": 0.8, "note": EVIL},
        "seed": 0,
        "versions": {"kanna": "0.1.0"},
        "scores": scores or {"model_bytes_before": 2_139_648, "model_bytes_after": 1_746_458},
    }
    base = {"name": "base", "hash": "ab" * 32}
    return {"format_version": 1, "base": base, "steps": [step], "files": {"config.json": "cd" * 32}}


def write(directory: Path, **results: Any) -> Path:
    """A folder of results, one file each."""
    directory.mkdir(parents=True)
    for name, data in results.items():
        (directory / f"{name}.json").write_text(json.dumps(data))
    return directory


def write_model(directory: Path, data: Any, run: Any = None, **found: Any) -> Path:
    """A model directory; `found` are results of kanna laser: search, stages."""
    directory.mkdir(parents=True)
    for name, result in found.items():
        (directory / f"laser-{name}.json").write_text(json.dumps(result))
    (directory / "kanna.json").write_text(json.dumps(data))
    if run is not None:
        directory.with_name(f"{directory.name}.run.json").write_text(json.dumps(run))
    return directory


def everything(place: Path) -> list[Path]:
    """Folders with every kind of result and every status, and texts that try to escape."""
    within = decision("pass", -0.0012, (-0.0049, 0.0021), -0.01)
    beyond = decision("fail", -0.1864, (-0.2390, -0.1419), -0.01)
    open_ = decision("undecided", -0.0065, (-0.0191, 0.0044), -0.01, lost=None, gained=None)
    none = decision("undecided", 0.0, (-0.0164, 0.0164), 0.0, tolerance="0pt")
    worse = decision("pass", 0.3063, (0.1337, 0.4913), 1.181, tolerance="5%", lost=None, gained=None)
    lower = {"metric": "perplexity", "higher_is_better": False, "floors": {}}
    good = [
        task(EVIL, 0.9928, 0.9916, within, flips=[flip(EVIL), flip(CJK, "gained")], notes=[EVIL]),
        task("heldout.txt", 23.6321, 23.9384, worse, guard=True, **lower),
    ]
    apart = {"kl_mean": 0.00217, "kl_p99": 0.0531, "top1_agreement": 0.98828, "tokens": 4096}
    blamed = [{"matrix": f"model.layers.{i}.{EVIL}", "repaired": 19 - i, "undone": i} for i in range(12)]
    infinite = decision("fail", float("inf"), (float("inf"), float("inf")), 0.5)
    lost = [task(LONG, 0.9928, 0.8064, beyond), task("broken.txt", 23.6, float("inf"), infinite, **lower)]
    first = write(
        place / "R",
        good=comparison("small", "pass", good, distribution=apart, blame=blamed, notes=[EVIL]),
        bad=comparison("tiny", "fail", lost, count=900_000),
        again=comparison("small", "undecided", [task("q.jsonl", 0.99, 0.9835, open_, rows=60)]),
        unasked=comparison("<b>plain</b>", "not judged", [task(CJK, 0.5, 0.625)]),
        bench=bench(),
        eval=evaluation("small", EVIL),
    )
    second = write(
        place / "a~b & <i>",
        zero=comparison("zero", "undecided", [task("q.jsonl", 0.99, 0.99, none, rows=60)]),
    )
    edits = write(
        place / "L",
        analysed=laser.analysis(EVIL),
        searched=_strange_search(),
    )
    run = {"seconds": 245.7, "peak_memory_bytes": 528_965_632, "finished": "today"}
    whole = laser.search(laser.grid(1), (-0.01, 0.0725))
    small = write_model(place / "small", lineage(), run, search=whole, stages=laser.composition(2))
    return [first, second, small, edits]


def _strange_search() -> Any:
    """A fast one with names that try to escape, row blocks, and a log loss that is no number."""
    trials = [
        laser.trial("up", 2, "0.1", 0.24),
        laser.trial("up", 3, "0.1", 0.5, rows=25),
        laser.trial("down", 1, "0.4", 0.2, blocks=4, consistency=None, log_loss=float("inf")),
        laser.trial(EVIL, 0, "0.9", 0.2),
    ]
    settings = {"budget": {"fast": 100}, "text": EVIL, "rhos": [*laser.RHOS, EVIL]}
    return laser.search(trials, (-0.02, -0.01), settings=settings, left_out=44)
