"""What edits do: answers of the kept and of the removed components, facts of each kind, and plain text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.linalg.spectra import effective_rank, signal_rank
from kanna.methods.laser import results
from kanna.methods.laser.arena import Arena, open_arena
from kanna.methods.laser.edits import Edit, parse_edit, resolve, spell
from kanna.methods.laser.plan import stated_rank
from kanna.methods.laser.ranks import laserrmt_threshold, signal_to_noise
from kanna.methods.laser.search_config import SearchOptions
from kanna.methods.laser.space import Candidate
from kanna.progress import Progress
from kanna.tasks.evaluate import make_scorer
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.generation import write_samples
from kanna.tasks.scorers.resumed import applied
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token
from kanna.tasks.verdict.tolerance import decide, parse_tolerance

_SHOWN_TOKENS = 5
_SAMPLES, _SAMPLE_TOKENS = 16, 64


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
    progress: Listener = False,
) -> results.Analysis:
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

    Returns:
        What kept and removed components answer.

    Raises:
        InputError: No edit, an edit that does not fit the model, or whatever else is wrong.
    """
    progress = heard(progress)
    if not edits:
        raise InputError("there is nothing to analyse", "add --edit, such as --edit mlp_in:-1:0.01")
    parsed = [parse_edit(edit) for edit in edits]
    asked = evaluation or EvalOptions()
    arena = open_arena(model, task, SearchOptions(text=text, roles="all", by=by), asked, whole=True)
    candidates = _candidates(arena, parsed)
    base, top, bottom = arena.scored(arena.task, candidates, ("top", "bottom"), progress)
    scores = {"base": base, "top": top, "bottom": bottom}
    written = predicts_next_token(arena.plan.config)
    return results.Analysis(
        schema_version=1,
        kind="laser-analysis",
        model=results.Model(name=arena.source.name, hash=arena.source.hash),
        task=results.AnalysedTask(name=arena.task.name, sha256=arena.task.digest, rows=len(arena.task.rows)),
        metric=base.metric,
        edits=[candidate.edit for candidate in candidates],
        spectra=[_spectrum(arena, candidate) for candidate in candidates],
        scores=results.Compared(**{name: dict(score.metrics) for name, score in scores.items()}),
        floors=dict(base.floors),
        difference=decide(base, top, tolerance=parse_tolerance("0")),
        answers=_answers(arena, candidates, scores, examples if written else 0, progress),
        **_asked(arena, candidates, scores, samples if written else 0, progress),
    )


def _asked(
    arena: Arena,
    candidates: Sequence[Candidate],
    scores: Mapping[str, TaskScore],
    samples: int,
    progress: Progress,
) -> dict[str, Any]:
    """What an analysis has only where it was asked for."""
    parts: dict[str, Any] = {}
    if (by := arena.by_key(arena.task, scores)) is not None:
        parts["by"] = results.ComparedBy.model_validate(by)
    if arena.options.text is not None:
        progress("perplexity", 0, 1)
        parts["perplexity"] = results.Perplexity(
            base=arena.perplexity([]), edited=arena.perplexity(candidates)
        )
    if samples:
        progress("samples", 0, 1)
        parts["samples"] = _samples(arena, candidates, samples)
    return parts


def _candidates(arena: Arena, edits: Sequence[Edit]) -> list[Candidate]:
    """One per matrix, with the smaller rank where two edits name it."""
    smallest: dict[str, Candidate] = {}
    for matrix, rank in resolve(edits, arena.found.matrices):
        if rank.rule not in ("rho", "k"):
            raise InputError(f"the rank {rank} depends on the spectrum", "give rho or k= to be analysed")
        number = stated_rank(rank, matrix.name, matrix.shape)
        known = smallest.get(matrix.name)
        if known is None or number < known.rank:
            edit = spell(matrix, arena.found.matrices, str(rank))
            smallest[matrix.name] = Candidate(matrix, rank.amount, number, 1, edit)
    return list(smallest.values())


def _spectrum(arena: Arena, candidate: Candidate) -> results.Spectrum:
    values = arena.weights.decomposition(candidate.matrix).values
    rows, columns = candidate.matrix.shape
    squares = values.square()
    total = squares.sum()
    noise = signal_to_noise(values, laserrmt_threshold(values, rows, columns))
    return results.Spectrum(
        edit=candidate.edit,
        matrix=candidate.matrix.name,
        rank=candidate.rank,
        full_rank=len(values),
        effective_rank=effective_rank(values),
        kept_energy=float(squares[: candidate.rank].sum() / total) if total > 0 else 1.0,
        rank_marchenko_pastur=signal_rank(values, rows, columns, rule="marchenko-pastur"),
        rank_gavish_donoho=signal_rank(values, rows, columns),
        laserrmt_signal_to_noise=noise if noise < float("inf") else None,  # JSON has no infinity
    )


def _answers(
    arena: Arena,
    candidates: Sequence[Candidate],
    scores: Mapping[str, TaskScore],
    most: int,
    progress: Progress,
) -> list[results.Answer]:
    """What the three models say to the rows that changed: set right first, then set wrong."""
    pairs = list(zip(scores["base"].records, scores["top"].records, strict=True))
    gained = [old.row for old, new in pairs if not old.right and new.right]
    lost = [old.row for old, new in pairs if old.right and not new.right]
    places = [*gained[:most], *lost[: max(0, most - len(gained))]]
    if not places:
        return []
    progress("answers", 0, 1)
    scorer = make_scorer(arena.plan, arena.model, arena.task)
    prompts = [arena.task.rows[place].asked for place in places]
    texts: dict[str, list[str]] = {}
    for name in ("base", "top", "bottom"):
        edits = [] if name == "base" else arena.weights.edits(candidates, name)
        with applied(arena.model, edits):
            texts[name] = scorer.write(prompts, _SHOWN_TOKENS, ("\n",), lambda *_: None)
    return [
        results.Answer(
            row=place,
            change="gained" if place in gained else "lost",
            prompt=arena.task.rows[place].prompt,
            expected=arena.task.rows[place].answer,
            **{name: written[number] for name, written in texts.items()},
        )
        for number, place in enumerate(places)
    ]


def _samples(arena: Arena, candidates: Sequence[Candidate], count: int) -> results.Continued:
    """Free continuations of the task's first distinct prompts."""
    prompts = list(dict.fromkeys(row.asked for row in arena.task.rows))[:count]
    scorer = make_scorer(arena.plan, arena.model, arena.task)
    room = context_length(arena.plan.config, arena.plan.tokenizer, arena.plan.options.context) // 2
    written: dict[str, results.Written] = {}
    for name, edits in (("base", []), ("edited", arena.weights.edits(candidates))):
        with applied(arena.model, edits):
            samples = write_samples(scorer, prompts, min(_SAMPLE_TOKENS, room))
        written[name] = results.Written(**samples.to_dict())
    return results.Continued(prompts=prompts, **written)
