"""Several edits together: greedily, from the last layer to the first, in stages that can be undone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from kanna.checked import validated
from kanna.checkpoint import lineage
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.laser.arena import Arena, fingerprint, open_arena
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.choose import Score, compose, order
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.finding import Choice, Finding, Job
from kanna.methods.laser.restore import find_base, read_manifest, read_recorded, restore
from kanna.methods.laser.results import (
    RESULT,
    STAGES,
    Composition,
    Perplexity,
    Search,
    Settings,
    Stage,
    Start,
    Tested,
    Trial,
)
from kanna.methods.laser.run import LaserResult, laser_apply
from kanna.methods.laser.search import trial
from kanna.methods.laser.search_config import SearchOptions
from kanna.methods.laser.searching import test_edits
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import Validation
from kanna.progress import Progress
from kanna.result import replace
from kanna.runs.criteria import Criteria
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.request import Origin
from kanna.tasks.evaluate import headline
from kanna.tasks.journal import Tally
from kanna.tasks.options import EvalOptions

ComposeResult = Finding[Composition]


def laser_compose(
    model: str | Path,
    task: str | Path,
    search: str | Path,
    out: str | Path,
    *,
    max_steps: int = 10,
    blocks: int = 1,
    text: Path | None = None,
    max_ppl_rise: float | None = 0.02,
    test: Path | None = None,
    evaluation: EvalOptions | None = None,
    config: LaserConfig | None = None,
    criteria: Criteria | None = None,
    force: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    progress: Listener = False,
) -> ComposeResult:
    """Put edits of a search together, each accepted only if the validation score does not fall.

    The rows are split as in the search. The output is the model with all accepted edits; `laser-stages.json`
    in it lists the steps, and `restore` with a stage gives the model of any of them.

    Args:
        model: The one that was searched.
        task: The file that was searched on.
        search: Output directory of `laser_search`, or its result file.
        max_steps: Steps tried.
        blocks: Only edits of so many row blocks take part.
        text: Perplexity on it may rise by `max_ppl_rise` in all.
        test: As in the search.

    Returns:
        The composition (`found`), and the model that was written, if one was (`applied`).

    Raises:
        InputError: Another model or task than those of the search, or whatever else is wrong.
    """
    progress = heard(progress)
    searched = read_search(search)
    stored = config or LaserConfig()
    _check_blocks(searched, stored, blocks)
    asked = evaluation or EvalOptions()
    asked = replace(asked, metric=asked.metric or searched.task.metric)
    job = Job(model, out, stored, criteria, force, resume, cache, progress, read=(Path(search),))
    arena = open_arena(model, task, _options(searched.settings, text, max_ppl_rise, test), asked, criteria)
    _check_same(searched, arena, search)

    def choose(validation: Validation, progress: Progress) -> Choice[Composition]:
        composed = _compose(arena, searched, max_steps, blocks, validation, progress)
        result = composed.to_dict()
        facts = {"compose": {"test": result["test"]}}
        origin = Origin("laser compose", facts, {STAGES: result}, arena.task.digest)
        return Choice(composed, composed.edits, blocks, origin)

    return job.carried_out(arena, fingerprint(arena, [searched.to_dict(), max_steps, blocks]), choose)


def read_search(path: str | Path) -> Search:
    """The result of a search: the file, or the directory that holds it.

    Raises:
        InputError: There is none, it is of a newer kanna, or something in it is missing or wrong.
    """
    given = Path(path)
    file = given / RESULT if given.is_dir() else given
    remedy = "give the output of kanna laser search, or its result file"
    data = read_recorded(file, f"{path} holds no {RESULT}", remedy, "schema_version")
    if data.get("kind") != "laser-search":
        raise InputError(f"{file} is not the result of a search", f"give a {RESULT}")
    return validated(Search, data, file, "write it again with kanna")


def read_stages(directory: str | Path) -> Composition:
    """The stages of a composed model.

    Raises:
        InputError: It is no composed model, or something in its stages is missing or wrong.
    """
    path = Path(directory) / STAGES
    remedy = "give the output of kanna laser compose"
    data = read_recorded(path, f"{directory} holds no {STAGES}", remedy, "schema_version")
    return validated(Composition, data, path, "write it again with kanna")


def stage_edits(directory: str | Path, stage: int) -> tuple[str, ...]:
    """The edits of the first `stage` accepted steps of a composed model.

    Raises:
        InputError: It is no composed model, or has no such stage.
    """
    accepted = read_stages(directory).edits
    if not 0 <= stage <= len(accepted):
        raise InputError(f"{directory} has no stage {stage}", f"stages are 0 (the base) to {len(accepted)}")
    return tuple(accepted[:stage])


def restore_stage(
    directory: str | Path,
    stage: int,
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> LaserResult:
    """Write the model of one stage of a composed model: fewer edits than it has, or all again.

    The stages stay recorded in the output, so it can be advanced again.

    Args:
        directory: A composed model, or what this function wrote.
        stage: How many accepted edits; 0 is the base.
        base: The model that was edited; None takes the originals that the directory keeps, or looks for it
            by its recorded name and hash.
    """
    edits = stage_edits(directory, stage)
    checkpoint = Checkpoint.open(directory)
    manifest = read_manifest(checkpoint)
    recorded = lineage.verify(checkpoint.directory)
    if recorded is None:
        raise InputError(f"{directory} has no {lineage.FILE}", "give what kanna laser compose wrote")
    last = recorded.steps[-1]
    config = LaserConfig(**last.config).model_copy(update={"edits": edits})
    stages = read_stages(directory).to_dict()
    origin = Origin("laser compose", {"stage": stage}, {STAGES: stages}, last.data_hash)
    target = final_name(out)
    refuse_existing(target, force)
    refuse_input(target, checkpoint.directory)
    if base is not None or not manifest["originals"]:
        source = find_base(checkpoint, manifest, base).directory
        return laser_apply(source, target, config, force=force, origin=origin, progress=progress)
    with tempfile.TemporaryDirectory(prefix="kanna-base-") as folder:
        source = restore(directory, Path(folder) / Path(manifest["made_from"]["name"]).name)
        return laser_apply(source, target, config, force=force, origin=origin, progress=progress)


def _options(
    searched: Settings, text: Path | None, max_ppl_rise: float | None, test: Path | None
) -> SearchOptions:
    """Those of the search, all rows in one part."""
    if searched.test is not None and test is None:
        raise InputError(
            f"the search had a test file of its own, {searched.test}", "give it again with --test"
        )
    given = dict(searched) | {"budget": Budget(fast=None), "text": text, "test": test}
    del given["max_ppl_rise"]
    return SearchOptions(**given) if text is None else SearchOptions(**given, max_ppl_rise=max_ppl_rise)


def _check_blocks(searched: Search, config: LaserConfig, blocks: int) -> None:
    tried = searched.settings.blocks
    if blocks not in tried:
        raise InputError(
            f"the search tried no edits of {blocks} row blocks",
            f"choose --blocks {' or '.join(map(str, tried))}",
        )
    if config.factored and blocks != 1:
        raise InputError("factors hold one block of rows only", "leave out --blocks, or --factored")


def _check_same(searched: Search, arena: Arena, search: str | Path) -> None:
    if arena.source.hash != searched.model.hash:
        raise InputError(
            f"{arena.source.name} is not the model that {search} searched ({searched.model.name})",
            "give that model",
        )
    task = searched.task
    same_rows = (len(arena.task.rows), len(arena.choosing)) == (task.rows, task.validation_rows)
    if arena.task.digest != task.sha256 or not same_rows:
        raise InputError(
            f"{arena.task.name} is not the task that {search} was made on ({task.name}, "
            f"{task.validation_rows} of {task.rows} rows for validation)",
            "give that file, with the same --limit",
        )
    metric = headline(arena.task, arena.plan.options)
    if metric != task.metric:
        raise InputError(f"{search} chose by {task.metric}, not by {metric}", "leave out --metric")


def _compose(
    arena: Arena,
    searched: Search,
    max_steps: int,
    blocks: int,
    validation: Validation,
    progress: Progress,
) -> Composition:
    base = searched.base
    trials = [trial for trial in searched.trials if trial.blocks == blocks]
    by_edit = {candidate.edit: candidate for candidate in arena.candidates() if candidate.blocks == blocks}
    start = _score(validation.base(len(arena.parts), progress))
    wanted = order(_usable(trials, base, by_edit, validation, progress), base, max_steps)
    limit = _limit(arena, progress)

    def score(some: Sequence[Trial]) -> Score:
        progress("compose", len(some), len(wanted))
        candidates = [by_edit[trial.edit] for trial in some]
        return _score(validation.together(candidates, " + ".join(trial.edit for trial in some)))

    def allowed(some: Sequence[Trial]) -> bool:
        return limit is None or arena.perplexity([by_edit[trial.edit] for trial in some]) <= limit

    stages = compose(start, wanted, score, allowed)
    chosen = [by_edit[stage.edit] for stage in stages if stage.accepted]
    tested = test_edits(arena, chosen, progress) if chosen else None
    return _result(arena, searched, start, stages, chosen, limit is not None, tested)


def _usable(
    trials: Sequence[Trial],
    base: Trial,
    by_edit: dict[str, Candidate],
    validation: Validation,
    progress: Progress,
) -> list[Trial]:
    """The trials on all validation rows; those of a fast search that saw some of them only now see all."""
    partial = [by_edit[tried.edit] for tried in trials if tried.rows < base.rows]
    scores = validation.score(partial, len(validation.sizes), progress)
    whole = [trial(candidate, score) for candidate, score in zip(partial, scores, strict=True)]
    return [*(tried for tried in trials if tried.rows == base.rows), *whole]


def _limit(arena: Arena, progress: Progress) -> float | None:
    """The highest perplexity allowed."""
    if arena.options.text is None or arena.options.max_ppl_rise is None:
        return None
    progress("perplexity", 0, 1)
    return arena.perplexity([]) * (1 + arena.options.max_ppl_rise)


def _score(tally: Tally) -> Score:
    return tally.accuracy, tally.mean_log_loss, tally.consistency


def _result(
    arena: Arena,
    searched: Search,
    start: Score,
    stages: list[Stage],
    chosen: Sequence[Candidate],
    measured: bool,
    tested: Tested | None,
) -> Composition:
    accuracy, log_loss, consistency = start
    return Composition(
        schema_version=1,
        kind="laser-compose",
        model=searched.model,
        task=searched.task,
        base=Start(accuracy=accuracy, log_loss=log_loss, consistency=consistency),
        stages=stages,
        accepted=len(chosen),
        perplexity=Perplexity(
            base=arena.perplexity([]) if measured else None,
            edited=arena.perplexity(chosen) if measured else None,
        ),
        test=tested,
    )
