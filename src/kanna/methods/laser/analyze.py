"""What edits do: answers of the kept and of the removed components, facts of each kind, and plain text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.linalg.spectra import effective_rank, signal_rank
from kanna.methods.laser.arena import Arena, SearchOptions, open_arena
from kanna.methods.laser.edits import Edit, parse_edit, resolve, spell
from kanna.methods.laser.plan import stated_rank
from kanna.methods.laser.ranks import laserrmt_threshold, signal_to_noise
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import EditedTask
from kanna.tasks.data.rows import Row
from kanna.tasks.evaluate import EvalOptions, make_scorer
from kanna.tasks.metrics.breakdown import breakdown
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.resumed import applied
from kanna.tasks.scorers.samples import Samples, write_samples
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token
from kanna.tasks.verdict.tolerance import decide, parse_tolerance

Progress = Callable[[str, int, int], None]
_SHOWN_TOKENS = 5
_SAMPLES, _SAMPLE_TOKENS = 16, 64


@dataclass(frozen=True)
class Analysis:
    """All that an analysis found, as `to_dict` gives it."""

    result: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.result


def laser_analyze(
    model: str | Path,
    task: str | Path,
    edits: Sequence[str],
    *,
    by: str | None = None,
    text: Path | None = None,
    examples: int = 20,
    samples: int = _SAMPLES,
    evaluation: EvalOptions | None = None,
    progress: Progress = lambda *_: None,
) -> Analysis:
    """Compare the model as it is with the top components of the edited matrices, and with the bottom ones.

    On the rows that the edit sets right, the bottom components alone tend to answer with a wrong word of the
    right kind (section 5.2 and figure 5 of the paper); the table shows whether they do here.

    Args:
        model: Directory, or hub id in the local cache.
        task: Rows with answers or choices; all of them are scored.
        edits: Put in together.
        by: Key of the rows, such as "frequency", by which scores are also given.
        text: Plain text, for perplexity before and after.
        examples: Rows shown, those that were set right first.
        samples: Prompts continued freely, for length and repetition; 0 for none.

    Raises:
        InputError: No edit, an edit that does not fit the model, or whatever else is wrong.
    """
    if not edits:
        raise InputError("there is nothing to analyse", "add --edit, such as --edit mlp_in:-1:0.01")
    parsed = [parse_edit(one) for one in edits]
    asked = evaluation or EvalOptions()
    arena = open_arena(model, task, SearchOptions(text=text, roles="all", by=by), asked, whole=True)
    candidates = _candidates(arena, parsed)
    scored = EditedTask(arena.plan, arena.task, arena.model, arena.found, arena.options.memory)
    try:
        base = scored.base(progress, {min(one.matrix.layer for one in candidates)})
        variants = [arena.weights.edits(candidates, mode) for mode in ("top", "bottom")]
        top, bottom = scored.edited(variants, progress)
    finally:
        scored.close()
    decision = decide(base, top, tolerance=parse_tolerance("0"))
    scores = {"base": base, "top": top, "bottom": bottom}
    written = predicts_next_token(arena.plan.config)
    result: dict[str, Any] = {
        "schema_version": 1,
        "kind": "laser-analysis",
        "model": {"name": arena.checkpoint.name, "hash": arena.base_hash},
        "task": {"name": arena.task.name, "sha256": arena.task.digest, "rows": len(arena.task.rows)},
        "metric": base.metric,
        "edits": [one.edit for one in candidates],
        "spectra": [_spectrum(arena, one) for one in candidates],
        "scores": {name: dict(one.metrics) for name, one in scores.items()},
        "floors": dict(base.floors),
        "difference": decision.to_dict(),
        "answers": _answers(arena, candidates, scores, examples if written else 0, progress),
    }
    if by is not None:
        result["by"] = {
            "key": by, **{name: breakdown(one, arena.task.rows, by) for name, one in scores.items()}
        }  # fmt: skip
    if text is not None:
        progress("perplexity", 0, 1)
        result["perplexity"] = {"base": arena.perplexity([]), "edited": arena.perplexity(candidates)}
    if samples and written:
        progress("samples", 0, 1)
        result["samples"] = _samples(arena, candidates, samples)
    return Analysis(result)


def _candidates(arena: Arena, edits: Sequence[Edit]) -> list[Candidate]:
    """One per matrix, with the smaller rank where two edits name it."""
    found: dict[str, Candidate] = {}
    for matrix, rank in resolve(edits, arena.found.matrices):
        if rank.rule not in ("rho", "k"):
            raise InputError(f"the rank {rank} depends on the spectrum", "give rho or k= to be analysed")
        number = stated_rank(rank, matrix.name, matrix.shape)
        known = found.get(matrix.name)
        if known is None or number < known.rank:
            edit = spell(matrix, arena.found.matrices, str(rank))
            found[matrix.name] = Candidate(matrix, rank.amount, number, 1, edit)
    return list(found.values())


def _spectrum(arena: Arena, one: Candidate) -> dict[str, Any]:
    values = arena.weights.decomposition(one.matrix).values
    rows, columns = one.matrix.shape
    squares = values.square()
    threshold = laserrmt_threshold(values, rows, columns)
    return {
        "edit": one.edit,
        "matrix": one.matrix.name,
        "rank": one.rank,
        "full_rank": len(values),
        "effective_rank": effective_rank(values),
        "kept_energy": float(squares[: one.rank].sum() / total) if (total := squares.sum()) > 0 else 1.0,
        "rank_marchenko_pastur": signal_rank(values, rows, columns, rule="marchenko-pastur"),
        "rank_gavish_donoho": signal_rank(values, rows, columns),
        "laserrmt_signal_to_noise": _finite(signal_to_noise(values, threshold)),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if value < float("inf") else None


def _answers(
    arena: Arena,
    candidates: Sequence[Candidate],
    scores: dict[str, TaskScore],
    most: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """What the three models say to the rows that changed: set right first, then set wrong."""
    pairs = list(zip(scores["base"].records, scores["top"].records, strict=True))
    gained = [one.row for one, other in pairs if not one.right and other.right]
    lost = [one.row for one, other in pairs if one.right and not other.right]
    places = [*gained[:most], *lost[: max(0, most - len(gained))]]
    if not places:
        return []
    rows: list[Row] = [arena.task.rows[place] for place in places]
    progress("answers", 0, 1)
    scorer = make_scorer(arena.plan, arena.model)
    prompts = [row.prompt for row in rows]
    said: dict[str, list[str]] = {}
    for name in ("base", "top", "bottom"):
        edits = [] if name == "base" else arena.weights.edits(candidates, name)
        with applied(arena.model, edits):
            said[name] = scorer.write(prompts, _SHOWN_TOKENS, ("\n",), lambda *_: None)
    return [
        {
            "row": place,
            "change": "gained" if place in gained else "lost",
            "prompt": row.prompt,
            "expected": row.answer,
            **{name: texts[number] for name, texts in said.items()},
        }
        for number, (place, row) in enumerate(zip(places, rows, strict=True))
    ]


def _samples(arena: Arena, candidates: Sequence[Candidate], count: int) -> dict[str, Any]:
    """Free continuations of the task's first distinct prompts."""
    prompts = list(dict.fromkeys(row.prompt for row in arena.task.rows))[:count]
    scorer = make_scorer(arena.plan, arena.model)
    room = context_length(arena.plan.config, arena.plan.tokenizer, arena.plan.options.context) // 2
    found: dict[str, Samples] = {}
    for name, edits in (("base", []), ("edited", arena.weights.edits(candidates))):
        with applied(arena.model, edits):
            found[name] = write_samples(scorer, prompts, min(_SAMPLE_TOKENS, room))
    return {"prompts": prompts, **{name: one.to_dict() for name, one in found.items()}}
