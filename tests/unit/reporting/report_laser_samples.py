"""Results of kanna laser with random scores, made by the rules that a search goes by."""

import random
from typing import Any

from kanna.methods.laser.choose import CONSTRAINED, choose, pareto
from kanna.methods.laser.results import Trial

ROLES, LAYERS, RHOS = ("gate", "up", "down"), 4, ["0.9", "0.4", "0.1", "0.01"]
ROWS = 500


def base_trial(accuracy: float = 0.25) -> Trial:
    return Trial(
        edit="", layer=-1, role="", matrix="", rho="", rank=0, blocks=1, rows=ROWS, accuracy=accuracy,
        log_loss=2.5, consistency=0.125, perplexity=None,
    )  # fmt: skip


def trial(role: str, layer: int, rho: str, accuracy: float, rows: int = ROWS, **more: Any) -> Trial:
    scores = {"blocks": 1, "log_loss": 2.5, "consistency": 0.25, "perplexity": None} | more
    return Trial(
        edit=f"{role}:{layer}:{rho}",
        layer=layer,
        role=role,
        matrix=f"model.layers.{layer}.mlp.{role}_proj",
        rho=rho,
        rank=max(1, int(64 * float(rho))),
        rows=rows,
        accuracy=accuracy,
        **scores,
    )


def grid(seed: int, best: float = 0.3) -> list[Trial]:
    """Every candidate on every row; the best one is up:2:0.1."""
    draw = random.Random(seed)
    places = [(role, layer, rho) for layer in reversed(range(LAYERS)) for role in ROLES for rho in RHOS]
    found = []
    for place in places:
        accuracy = best if place == ("up", 2, "0.1") else draw.uniform(0.05, best - 0.01)
        scores = {"log_loss": draw.uniform(2, 4), "consistency": draw.uniform(0.2, 0.4)}
        found.append(trial(*place, accuracy, **scores))
    return found


def tested(edits: list[str], low: float, high: float, **more: Any) -> Any:
    scores = {
        name: {"value": value, "greedy": value, "log_loss": 2.512345, "consistency": 0.25}
        for name, value in (("base", 0.25), ("edit", 0.28125), ("magnitude", 0.24), ("random", 0.125))
    }
    frequencies = {"16": 0.5, "2": 0.125, "6": 0.25}
    by = {name: {key: {"rows": 40, "value": one} for key, one in frequencies.items()} for name in scores}
    return {
        "edits": edits,
        "rows": 2001,
        "metric": "greedy",
        "floors": {"constant": 0.0625, "answer_in_prompt": 0.0},
        **scores,
        "difference": 0.03125,
        "interval": [low, high],
        "confidence": 0.95,
        "p_flips": 0.5,
        "lost": 37,
        "gained": 1044,
        "by": {"key": "frequency", **by},
    } | more


def search(trials: list[Trial], test: Any = None, **more: Any) -> Any:
    """As laser_search writes it.

    Args:
        test: (lower, upper) end of the interval on test rows; None for no test.
    """
    settings = {
        "roles": "mlp",
        "layers": "all",
        "rhos": RHOS,
        "blocks": [1],
        "rule": CONSTRAINED,
        "max_ppl_rise": 0.02,
        "text": None,
        "text_tokens": 8192,
        "share": 0.2,
        "first": False,
        "test": None,
        "by": None,
        "seed": 0,
        "budget": {"fast": None},
    } | more.pop("settings", {})
    base = base_trial()
    whole = [one for one in trials if one.rows == base.rows]
    found, _ = choose(base, whole, settings["rule"])
    shown = found if found.edit else max(whole, key=lambda one: (one.accuracy, -one.log_loss), default=None)
    return {
        "schema_version": 1,
        "kind": "laser-search",
        "model": {"name": "base", "hash": "ab" * 32},
        "task": {
            "name": "facts.jsonl",
            "sha256": "cd" * 32,
            "kind": "answer",
            "metric": "greedy",
            "rows": 2501,
            "validation_rows": ROWS,
            "test_rows": 2001,
        },
        "layers": LAYERS,
        "settings": settings,
        "candidates": len(ROLES) * LAYERS * len(RHOS),
        "evaluations": len(whole) + 1,
        "matrices": len(ROLES) * LAYERS,
        "left_out": 0,
        "base": base.to_dict(),
        "trials": [one.to_dict() for one in trials],
        "predicted": {},
        "pareto": [one.to_dict() for one in pareto([base, *whole])],
        "chosen": found.to_dict(),
        "base_wins": not found.edit,
        "test": None if test is None or shown is None else tested([shown.edit], *test),
    } | more


def composition(accepted: int = 1, **more: Any) -> Any:
    stages = [
        {
            "edit": f"down:{3 - i}:0.1",
            "accuracy": 0.26 + 0.01 * i,
            "log_loss": 2.4 - 0.01 * i,
            "consistency": 0.25,
            "accepted": i < accepted,
            "number": i + 1 if i < accepted else 0,
        }
        for i in range(3)
    ]
    whole = search(grid(0))
    edits = [one["edit"] for one in stages if one["accepted"]]
    return {
        "schema_version": 1,
        "kind": "laser-compose",
        "model": whole["model"],
        "task": whole["task"],
        "base": {"accuracy": 0.25, "log_loss": 2.5, "consistency": 0.125},
        "stages": stages,
        "accepted": accepted,
        "perplexity": {"base": 75.7186, "edited": 76.0894},
        "test": tested(edits, 0.001, 0.06) if edits else None,
    } | more


def analysis(text: str, **more: Any) -> Any:
    scores = {"greedy": 0.2044, "consistency": 0.144, "log_loss": 4.63995}
    samples = {
        name: {
            "texts": [f"{name} {text}", "short"],
            "words": 38.1875,
            "repetition": 0.5915,
            "distinct": 0.0736,
        }
        for name in ("base", "edited")
    }
    groups = {key: {"rows": 30, "value": 0.5} for key in ("rare", text.replace("\0", ""))}
    return {
        "schema_version": 1,
        "kind": "laser-analysis",
        "model": {"name": "base", "hash": "ab" * 32},
        "task": {"name": text, "sha256": "cd" * 32, "rows": 2500},
        "metric": "greedy",
        "edits": ["up:2:0.1"],
        "spectra": [
            {
                "edit": "up:2:0.1",
                "matrix": f"model.{text}",
                "rank": 25,
                "full_rank": 256,
                "effective_rank": 211.94376,
                "kept_energy": 0.43608,
                "rank_marchenko_pastur": 63,
                "rank_gavish_donoho": 48,
                "laserrmt_signal_to_noise": None,
            }
        ],
        "scores": {"base": scores, "top": scores | {"greedy": 0.2088}, "bottom": scores | {"greedy": 0.1}},
        "floors": {"constant": 0.0408},
        "difference": {
            "status": "undecided",
            "difference": 0.0044,
            "interval": [-0.0011, 0.0102],
            "bound": -0.0011,
            "allowed": 0.0,
            "confidence": 0.95,
            "p_pass": 0.06,
            "p_fail": 0.94,
            "p_flips": 0.16,
            "lost": 20,
            "gained": 31,
            "rows": 2500,
            "groups": 2500,
            "more_rows": None,
            "method": "score test of paired proportions",
            "tolerance": "0",
        },
        "answers": [
            {"row": 7, "change": "gained", "prompt": text * 2, "expected": text, "base": f"base {text}",
             "top": f"top {text}", "bottom": f"bottom {text}"}
        ],
        "by": {"key": text, **dict.fromkeys(("base", "top", "bottom"), groups)},
        "perplexity": {"base": 75.7186, "edited": 76.0894},
        "samples": {"prompts": [text, "q"], **samples},
    } | more  # fmt: skip
