"""Carry a plan out: gradients, survey, ranks, replacement. Every stage's result is a file; none is redone."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.forms import Form, from_json
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.gradients import OutputGradients, load_whole, output_gradients
from kanna.methods.lowrank.plan import Plan, share_kept
from kanna.methods.lowrank.ranks import allocate
from kanna.methods.lowrank.replace import Replacement, block_file, replace_blocks
from kanna.methods.lowrank.survey import Survey, plain_survey, run_survey
from kanna.methods.lowrank.workspace import Workspace
from kanna.models.names import tensor_name

Progress = Callable[[str, int, int], None]
_GRADIENTS = "gradients.safetensors"


@dataclass(frozen=True)
class Outcome:
    """The replaced modules, in files.

    Args:
        forms: By module path.
        ranks: By name of the selected matrices.
        keep: Share of their parameters that is kept.
        workspace: Holds one file a block.
        blocks: How many.
    """

    forms: Mapping[str, Form]
    ranks: Ranks
    keep: float
    workspace: Workspace
    blocks: int

    def tensors(self, layer: int) -> dict[str, Tensor]:
        """Full parameter name -> tensor of one block."""
        return self.workspace.load(block_file(layer))


def execute(
    checkpoint: Checkpoint,
    plan: Plan,
    windows: Windows,
    probe: Windows,
    base_hash: str,
    cache: Path,
    workspace: Workspace,
    device: torch.device,
    progress: Progress,
) -> Outcome:
    """Do what `plan` says.

    Args:
        windows: Calibration windows; equal to `probe` without text.
        probe: A few windows, run through methods that need no stream of their own.
        cache: Where statistics are kept for other runs on the same model and text.
        workspace: Where this run's pieces go.
    """
    config = plan.config
    walker = Walker(checkpoint, plan.inventory, device)
    shared = Workspace(cache / statistics_key(plan, windows, base_hash, device))
    shared.directory.mkdir(parents=True, exist_ok=True)
    with FileLock(shared.directory / "lock"):  # another run on the same model and text waits, and reuses
        gradients = _gradients(checkpoint, plan, windows, shared, device, progress)
        survey = _survey(walker, plan, windows, gradients, shared, progress)
    ranks = plan.ranks if plan.ranks is not None else allocate(plan.selected, survey.energies(), config)
    job = Replacement(
        walker=walker,
        matrices=plan.inventory.matrices,
        ranks=ranks,
        config=config,
        windows=windows if config.two_streams else probe,
        gradients=gradients,
        survey=survey,
        workspace=workspace,
        dtype=lambda module: _stored_dtype(checkpoint, plan, module),
    )
    replace_blocks(job, progress)
    blocks = len(plan.inventory.blocks)
    notes = [workspace.note(block_file(layer)) for layer in range(blocks)]
    forms = {path: from_json(data) for note in notes for path, data in note["forms"].items()}
    return Outcome(forms, ranks, share_kept(plan, ranks), workspace, blocks)


def statistics_key(plan: Plan, windows: Windows, base_hash: str, device: torch.device) -> str:
    """Name of everything that gradients and survey depend on."""
    config = plan.config
    facts = {
        "base": base_hash,
        "windows": windows.digest,
        "matrices": [matrix.name for matrix in plan.selected],
        "method": config.method,
        "outputs": config.outputs,
        "gradients": config.gradient_tokens if config.needs_gradients else 0,
        "ridge": config.ridge,
        "bias": config.bias_correction,
        "batch": config.batch,
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "versions": lineage.versions(),
        "device": str(device),
        "format": 1,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _gradients(
    checkpoint: Checkpoint,
    plan: Plan,
    windows: Windows,
    shared: Workspace,
    device: torch.device,
    progress: Progress,
) -> dict[str, OutputGradients]:
    """Output gradients by module path, from the cache where they are."""
    if not plan.config.needs_gradients:
        return {}
    if not shared.has(_GRADIENTS):
        model = load_whole(checkpoint, device)
        modules = list(dict.fromkeys(matrix.module for matrix in plan.selected))
        used = windows.limited(plan.config.gradient_tokens)
        fisher = plan.config.method == "fwsvd"
        total = -(-len(used.ids) // plan.config.batch)
        sums: dict[str, OutputGradients] = {}
        progress("gradients", 0, total)
        for done, found in output_gradients(
            model, modules, used, plan.config.batch, plan.config.seed, fisher
        ):
            progress("gradients", done, total)
            sums = found
        shared.save(_GRADIENTS, _as_tensors(sums), {path: value.count for path, value in sums.items()})
    return _from_tensors(shared.load(_GRADIENTS), shared.note(_GRADIENTS))


def _as_tensors(sums: Mapping[str, OutputGradients]) -> dict[str, Tensor]:
    second = {f"{path}:second": value.second.float() for path, value in sums.items()}
    return second | {f"{path}:fisher": value.fisher for path, value in sums.items()}


def _from_tensors(held: Mapping[str, Tensor], counts: Mapping[str, Any]) -> dict[str, OutputGradients]:
    return {
        path: OutputGradients(held[f"{path}:second"].double(), held[f"{path}:fisher"], int(count))
        for path, count in counts.items()
    }


def _survey(
    walker: Walker,
    plan: Plan,
    windows: Windows,
    gradients: Mapping[str, OutputGradients],
    shared: Workspace,
    progress: Progress,
) -> Survey:
    """The survey, unless nobody will look at it: anchored factors at ranks that are already decided."""
    if plan.ranks is not None and plan.config.method == "anchored":
        return Survey(shared, 0)
    if plan.config.method == "plain" and not plan.config.needs_gradients:
        return plain_survey(walker, plan.selected, plan.config, shared, progress)
    return run_survey(walker, plan.selected, windows, plan.config, gradients, shared, progress)


def _stored_dtype(checkpoint: Checkpoint, plan: Plan, module: str) -> torch.dtype:
    """The dtype in which the source stores the weight of a module."""
    for leaf in ("weight", "bias"):
        name = tensor_name(f"{module}.{leaf}", checkpoint.tensors, plan.inventory.base_model_prefix)
        if name is not None:
            return checkpoint.dtype(name)
    raise KeyError(module)
