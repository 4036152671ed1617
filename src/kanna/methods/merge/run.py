"""The way from a recipe to a merged model, from Python; the verbs take it too."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanna.checkpoint import lineage
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import output_directory, write_json
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.merge.adapted import Adapted, directories
from kanna.methods.merge.disagreement import disagreement
from kanna.methods.merge.documents import foretold
from kanna.methods.merge.plan import DEFAULT_MEMORY, MergePlan, planned
from kanna.methods.merge.reading import read_recipes
from kanna.methods.merge.references import bases, parsed
from kanna.methods.merge.shards import written_shards
from kanna.methods.merge.vocabulary import Tokenizer
from kanna.methods.merge.written import Done, Judge, complete
from kanna.result import Shown
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.places import work_directory
from kanna.runs.record import Stages, run_record
from kanna.runs.room import check_memory, check_space
from kanna.runs.unfinished import about_to_name, clear, replaces, unfinished_work

if TYPE_CHECKING:
    from kanna.methods.merge.judged import Expert, Judged
    from kanna.runs.probe import Verdict

_BETWEEN = "documents"
_NOT_PLAIN = re.compile(r"[^\w.-]+")
Announce = Callable[[MergePlan], None]


@dataclass(frozen=True, repr=False)
class MergeResult(Shown):
    """What a merge did.

    Args:
        out: The directory.
        plan: What was to be done.
        figures: What rounding cost, what was kept.
        verdict: Whether the result loads and computes finite numbers; None where that was not tried.
        note: Why it was not tried; empty otherwise.
        run: Times and memory, also in `OUT.run.json`.
        judged: The result beside the models that know its tasks.
    """

    out: Path
    plan: MergePlan
    figures: Mapping[str, Any]
    verdict: Verdict | None
    note: str
    run: Mapping[str, Any] = field(default_factory=dict)
    judged: tuple[Judged, ...] = ()

    def __repr__(self) -> str:
        return f"<MergeResult: {'passed' if self.passed else 'failed'}; written: {self.out}>"

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be wrong."""
        loads = self.verdict is None or self.verdict.passed
        return loads and all(one.expert.passed for one in self.judged)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "merge",
            "out": str(self.out),
            "plan": self.plan.to_dict(),
            "figures": dict(self.figures),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "note": self.note,
            "run": dict(self.run),
            **({"tasks": [one.to_dict() for one in self.judged]} if self.judged else {}),
        }


def merge_plan(
    recipe: str | Path | Mapping[str, Any],
    *,
    out_dtype: str | None = None,
    max_memory: int = DEFAULT_MEMORY,
    seed: int = 0,
    lax: bool = False,
    risk: bool = False,
) -> MergePlan:
    """What a recipe in mergekit's YAML would do. Reads headers, configurations and tokenizers.

    Args:
        recipe: A file, or what it would hold. Relative paths are taken from where the program runs.
        out_dtype: Of the output, in the place of the recipe's.
        max_memory: Bytes that a merge may take.
        seed: Of methods that drop entries by chance.
        lax: What looks like a mistake in the recipe is a warning.
        risk: Read a sample of the weights, too, and say how much the models disagree.

    Returns:
        Models, what applies to which tensor, bytes and memory.

    Raises:
        InputError: Whatever is wrong with the recipe or its models, or not supported yet.
    """
    *before, last = read_recipes(recipe, lax)
    made: dict[str, Checkpoint] = {}
    plans: list[MergePlan] = []
    for one in before:
        assert one.name is not None  # only the last one may have none
        plans.append(
            changed(
                planned(one, None, max_memory, seed, made),
                before=tuple(p for p in plans if p.recipe.name in bases(one.models)),
            )
        )
        made[one.name] = foretold(plans[-1], one.name)
    plan = planned(last, out_dtype, max_memory, seed, made)
    if risk and made.keys() & bases(last.models):
        raise InputError(
            f"{', '.join(made.keys() & bases(last.models))} is a document whose result is not there yet",
            "plan without risk, or plan the documents before it alone",
        )
    return changed(plan, before=tuple(plans), disagreement=disagreement(plan) if risk else None)


def merge(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    out_dtype: str | None = None,
    max_memory: int = DEFAULT_MEMORY,
    seed: int = 0,
    lax: bool = False,
    force: bool = False,
    resume: bool = False,
    keep_intermediates: str | Path | None = None,
    load: bool = True,
    tasks: Sequence[str] = (),
    max_drop: str | None = None,
    announce: Announce = lambda _: None,
    progress: Listener = False,
) -> MergeResult:
    """Make one model out of several; see `merge_plan` for the other arguments.

    Args:
        out: New directory.
        force: Replace `out`, and start over where an unfinished merge is in the way.
        resume: Go on with a merge that was interrupted, to the same bytes.
        keep_intermediates: Where results of other documents lie and stay; None for unfinished work.
        load: Load the result, if it fits, to see that it computes finite numbers.
        tasks: "NAME=FILE", a model of the recipe and a task that it knows, beside which the result is judged.
        max_drop: What may be lost beside each such model, "1%" of its score or "1pt"; None only measures.
        announce: Called with the plan before the long work begins.
        progress: True shows bars in a notebook, lines elsewhere; or a function of (stage, done, total).

    Returns:
        What was done, and the comparison with experts and base, where tasks were named.

    Raises:
        InputError: Whatever is wrong, and then nothing is written.
    """
    progress = heard(progress)
    started = time.perf_counter()
    plan = merge_plan(recipe, out_dtype=out_dtype, max_memory=max_memory, seed=seed, lax=lax)
    experts = _experts(plan, tasks, max_drop)
    place = final_name(out)
    inputs = (model for one in (*plan.before, plan) for model in one.inputs.models)
    refuse_input(place, *(directory for model in inputs for directory in directories(model)))
    replace = replaces(place, force, resume)
    refuse_existing(place, replace)
    check_memory(plan.chunk_bytes, "give a smaller --max-memory")
    check_room(plan, place)
    announce(plan)
    stages = Stages(progress)
    with unfinished_work(place, key_of(plan), resume, force) as work:
        if plan.before:
            kept = work / _BETWEEN if keep_intermediates is None else Path(keep_intermediates).expanduser()
            made = _made_before(plan, work, kept, max_memory, stages, load)
            after = planned(plan.recipe, out_dtype, max_memory, seed, made)
            plan = changed(after, before=plan.before)
        judge = _judge(experts, place.name, stages) if experts else None
        plan, done = written_within(plan, place, work, replace, max_memory, stages, load=load, judge=judge)
        clear(work)
    run = run_record(started, stages.seconds, "cpu")
    lineage.write_run_record(place, run)
    return MergeResult(place, plan, done.figures, done.verdict, done.note, run, done.judged)


def _experts(plan: MergePlan, tasks: Sequence[str], max_drop: str | None) -> tuple[Expert, ...]:
    """Known before anything is merged."""
    if not tasks and max_drop is None:
        return ()
    from kanna.methods.merge.judged import experts_of  # reads tasks, which takes transformers

    return experts_of(plan, tasks, max_drop)


def _judge(experts: tuple[Expert, ...], name: str, stages: Stages) -> Judge:
    from kanna.methods.merge.judged import judged

    return lambda directory: judged(experts, directory, name, stages.report)


def written_within(
    plan: MergePlan,
    place: Path,
    work: Path,
    replace: bool,
    max_memory: int,
    stages: Stages,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
    load: bool = True,
    more: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
) -> tuple[MergePlan, Done]:
    """Write a merge, for one who holds the folder of unfinished work; the plan then tells of disagreement.

    Args:
        place: The output.
        replace: Whether it may replace what is there.
        beside: Name of a further file -> what it holds.
        load: See `merge`.
        more: What the result file tells besides.
        judge: See `complete`.
    """
    plan = changed(plan, disagreement=disagreement(plan))
    shards = written_shards(plan, work, stages.report)
    with output_directory(place, force=replace, needed_bytes=plan.side_bytes) as partial:
        shards.put_into(partial)
        for name, told in (beside or {}).items():
            write_json(partial / name, told)
        stages.report("verify", 0, 1)
        done = complete(plan, shards, partial, place.name, max_memory, load, more, judge)
        stages.report("verify", 1, 1)
        about_to_name(work, partial)
    return plan, done


def _made_before(
    plan: MergePlan, work: Path, kept: Path, max_memory: int, stages: Stages, load: bool
) -> dict[str, Checkpoint]:
    """The results of the other documents, by name; what lies there from an equal document is taken."""
    made: dict[str, Checkpoint] = {}
    for foreseen in plan.before:
        name = str(foreseen.recipe.name)
        place = kept / f"{_NOT_PLAIN.sub('-', name)}-{key_of(foreseen)[:16]}"
        if not place.is_dir():
            one = planned(foreseen.recipe, None, max_memory, foreseen.seed, made)
            room = work / f"{place.name}.work"
            room.mkdir(exist_ok=True)
            kept.mkdir(parents=True, exist_ok=True)
            shards = written_shards(one, room, stages.report)
            with output_directory(place, needed_bytes=one.side_bytes) as partial:
                shards.put_into(partial)
                complete(one, shards, partial, name, max_memory, load)
            shutil.rmtree(room)
        made[name] = changed(Checkpoint.open(place), name=name)
    return made


def key_of(plan: MergePlan) -> str:
    """sha256 of all that the bytes of the output depend on; files of the models by size and time."""
    before = {str(one.recipe.name) for one in plan.before}
    facts = {
        "recipe": plan.recipe.document,
        "seed": plan.seed,
        "sources": plan.recipe.models,
        "models": [
            [model.config, [[name, stored.dtype, stored.shape] for name, stored in model.tensors.items()]]
            for model in plan.inputs.models
        ],
        "files": [
            list(_state(_own_files(name, model, before)))
            for name, model in zip(plan.recipe.models, plan.inputs.models, strict=True)
        ],
        "before": [key_of(one) for one in plan.before],
        "tokens": None if plan.tokens is None else [plan.tokens.vocabulary, plan.tokens.of_models],
        "tokenizer": None if plan.tokenizer is None else _held(plan.tokenizer),
        "output": [
            [one.spec.name, str(one.spec.dtype), one.spec.shape, [[p.model, p.tensor] for p in one.parts]]
            for one in plan.tensors
        ],
        "versions": lineage.versions(),
    }
    return lineage.digest_of(facts)


def _own_files(name: str, model: Checkpoint, before: Container[str]) -> tuple[Path, ...]:
    """Files that are there before anything is merged."""
    if parsed(name, before).model not in before:
        return model.files
    return model.adapter.files if isinstance(model, Adapted) else ()


def _state(files: tuple[Path, ...]) -> Iterator[list[object]]:
    for file in files:
        found = file.stat()
        yield [file.name, found.st_size, found.st_mtime_ns]


def _held(tokenizer: Tokenizer) -> list[object]:
    """What its files hold, or their size and time."""
    return [
        [name, list(_state((held,))) if isinstance(held, Path) else held]
        for name, held in tokenizer.files.items()
    ]


def check_room(plan: MergePlan, place: Path) -> None:
    """Room for the files of the output; what a merge that is resumed has written counts as free."""
    work = work_directory(place)
    there = sum(_occupied(path) for path in work.rglob("*") if path.is_file()) if work.is_dir() else 0
    needed = sum(one.bytes_written + one.side_bytes for one in (*plan.before, plan))
    check_space(needed, place, str(place), there)


def _occupied(path: Path) -> int:
    """Bytes on the disk: files of work have holes."""
    found: os.stat_result = path.stat()
    return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512)
