"""Carry a plan out: gradients, survey, ranks, replacement. Every stage's result is a file; none is redone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from kanna.calibration.walker import Walker, batches_of
from kanna.calibration.windows import Windows
from kanna.checkpoint import lineage
from kanna.forms import Form, from_json
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.backward import BackwardWalk, StoredGradients
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients, Sums, check_gradients, packed
from kanna.methods.lowrank.in_memory import output_gradients
from kanna.methods.lowrank.plan import Plan, kept_dtype
from kanna.methods.lowrank.ranks import allocate
from kanna.methods.lowrank.replace import Replacement, replace_blocks
from kanna.methods.lowrank.survey import Decomposing, Survey, run_survey
from kanna.methods.lowrank.two_stacks import replace_stacks
from kanna.progress import Progress
from kanna.runs.blocks import block_file
from kanna.runs.cache_limit import LOCK, touch
from kanna.runs.step import Job
from kanna.runs.workspace import Workspace

_GRADIENTS = "gradients.safetensors"


@dataclass(frozen=True)
class Outcome:
    """The replaced modules, in files.

    Args:
        forms: By module path.
        ranks: By name of the selected matrices.
        workspace: Holds one file a block.
        visits: How often a block was run; of each there is a probe.
        unfelt: Names of matrices whose outputs the loss does not feel.
        unread: Names of matrices that read nothing on this text.
        energies: Of what was looked at, by matrix name: (r,) float64, weighed for comparison of matrices.
    """

    forms: Mapping[str, Form]
    ranks: Ranks
    workspace: Workspace
    visits: int = 0
    unfelt: Sequence[str] = ()
    unread: Sequence[str] = ()
    energies: Mapping[str, Tensor] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Full parameter name -> dtype and shape, of all blocks."""
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for file in self._files():
            shapes |= self.workspace.shapes(file)
        return shapes

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """Full parameter name and tensor, one block in memory at a time."""
        for file in self._files():
            yield from self.workspace.load(file).items()

    def _files(self) -> Iterator[str]:
        """There is one for each block, from the first one on."""
        return takewhile(self.workspace.has, map(block_file, count()))


def execute(job: Job, plan: Plan) -> Outcome:
    """Do what `plan` says.

    Where gradients are wanted of a model that cannot be run block by block, the whole model is in memory for
    them, and blocks are copies of its blocks.
    """
    config, source, device = plan.config, job.source, job.inputs.device
    if plan.inventory.has_decoder_apart:
        replace_stacks(job, plan)
        return _outcome(job, plan, plan.ranks or {})
    cache = job.inputs.cache / "statistics"
    walker = Walker(source.checkpoint, plan.inventory, device, trial=plan.trial)
    by_block = config.needs_gradients and walker.streams
    if config.needs_gradients and not by_block:
        walker = Walker(
            source.checkpoint, plan.inventory, device, whole=source.whole(device), trial=plan.trial
        )
    decomposing = Decomposing(walker, plan.selected, config, plan.stored, source.dtype)
    shared = Workspace(cache / statistics_key(plan, source.hash, device, by_block))
    with ExitStack() as held:  # to the end: nobody removes from the cache what is still to be read
        held.enter_context(_held(shared))
        if by_block:
            anchored = config.method == "anchored"
            kept = kept_dtype(source.checkpoint)
            walk = BackwardWalk(walker, decomposing, plan.windows, shared, anchored, kept)
            survey, gradients = walk.run(job.progress)
        else:
            gradients = _gradients(job, plan, cache, held) if config.needs_gradients else {}
            survey = _survey(decomposing, plan, gradients, shared, job.progress)
        unread = _unread(plan, survey)
        ranks = plan.ranks
        if ranks is None:
            read = [matrix for matrix in plan.selected if matrix.name not in unread]
            ranks = allocate(read, survey.energies(), config, plan.stored)
        ranks = {m.name: None if m.name in unread else ranks[m.name] for m in plan.selected}
        replacement = Replacement(walker, plan, ranks, gradients, survey, job.workspace, source.dtype)
        replace_blocks(replacement, job.progress)
        return _outcome(job, plan, ranks, survey, unread)


def _outcome(
    job: Job, plan: Plan, ranks: Ranks, survey: Survey | None = None, unread: Sequence[str] = ()
) -> Outcome:
    """What lies in the files of all blocks."""
    notes = [job.workspace.note(block_file(layer)) for layer in range(len(plan.inventory.blocks))]
    forms = {path: from_json(data) for note in notes for path, data in note["forms"].items()}
    visits = 0 if plan.tried is None else len(plan.tried.visits)
    if survey is None:
        return Outcome(forms, ranks, job.workspace, visits, unread=unread)
    return Outcome(forms, ranks, job.workspace, visits, survey.unfelt(), unread, survey.energies())


def _unread(plan: Plan, survey: Survey) -> tuple[str, ...]:
    """Names of selected matrices that read nothing on this text; of these nothing is known."""
    if plan.config.method == "plain" or not survey.layers:
        return ()
    known = survey.energies()
    return tuple(matrix.name for matrix in plan.selected if matrix.name not in known)


def statistics_key(plan: Plan, base_hash: str, device: torch.device, by_block: bool) -> str:
    """Name of everything that the survey depends on; anchored takes its curves from the whitened metric."""
    config = plan.config
    facts = {
        "matrices": [matrix.name for matrix in plan.selected],
        "method": "whitened" if config.method == "anchored" else config.method,
        "outputs": config.outputs,
        "gradients": config.gradient_tokens if config.needs_gradients else 0,
        "ridge": config.ridge,
        "bias": config.bias_correction,
        "storage": config.storage,
        "by_block": by_block,
    }
    return _name_of(plan.windows, base_hash, config, device, facts)


def _name_of(
    windows: Windows,
    base_hash: str,
    config: LowRankConfig,
    device: torch.device,
    more: Mapping[str, object],
) -> str:
    """Of `more`, and all that any statistics depend on."""
    facts = {
        **more,
        "base": base_hash,
        "windows": windows.digest,
        "batch": config.batch,
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "versions": lineage.versions(),
        "device": str(device),
        "format": 5,
    }
    return lineage.digest_of(facts)[:24]


def _gradients(job: Job, plan: Plan, cache: Path, held: ExitStack) -> Mapping[str, OutputGradients]:
    """Output gradients by module path of a model in memory, from the cache where they are.

    Args:
        held: Holds their place in the cache.
    """
    config, device = plan.config, job.inputs.device
    modules = list(dict.fromkeys(matrix.module for matrix in plan.selected))
    used = plan.windows.limited(config.gradient_tokens)
    fisher = config.method == "fwsvd"
    facts = {"modules": modules, "fisher": fisher}
    shared = Workspace(cache / _name_of(used, job.source.hash, config, device, facts))
    held.enter_context(_held(shared))
    if not shared.has(_GRADIENTS):
        model = job.source.whole(device)()
        batches = batches_of(plan.trial, used, used.at_once(config.batch))
        total = len(batches)
        sums: Sums = {}
        job.progress("gradients", 0, total)
        for done, so_far in output_gradients(model, modules, batches, config.seed, fisher):
            job.progress("gradients", done, total)
            sums = so_far
        check_gradients(sums)
        tensors = {f"{path}:second": packed(value.second) for path, value in sums.items()}
        tensors |= {f"{path}:fisher": value.fisher for path, value in sums.items()}
        shared.save(_GRADIENTS, tensors, {path: value.count for path, value in sums.items()})
    return StoredGradients(shared, [_GRADIENTS])


@contextmanager
def _held(shared: Workspace) -> Iterator[None]:
    """Another run on the same model and text waits, and reuses."""
    shared.directory.mkdir(parents=True, exist_ok=True)
    with FileLock(shared.directory / LOCK):
        yield
    touch(shared.directory)


def _survey(
    decomposing: Decomposing,
    plan: Plan,
    gradients: Mapping[str, OutputGradients],
    shared: Workspace,
    progress: Progress,
) -> Survey:
    """The survey, unless nobody will look at it: anchored factors at ranks that are already decided."""
    anchored = plan.config.method == "anchored" and not plan.trial.repeated
    if plan.ranks is not None and anchored:
        return Survey(shared, ())
    return run_survey(decomposing, plan.windows, gradients, shared, progress)
