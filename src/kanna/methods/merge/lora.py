"""Adapters of one base merged into an adapter, without the base: in the coordinates that all of them share.

The products D_i = E_i R_i of a tensor lie in the span U of all columns of the E_i and the span V of all rows
of the R_i. So D_i = U C_i V^T with small cores C_i = (U^T E_i) (R_i V), which are merged in the place of D_i:
what is linear in them is exact that way; what looks at single entries (TIES, DARE) sees those of cores, so
that signs are elected among directions that the adapters have, and the rank of the result is at most the
sum of theirs (compress, then merge).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint import lineage
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.linalg.decomposition import decompose
from kanna.methods.merge.adapted import Adapted, directories, plain
from kanna.methods.merge.adapter import Factors
from kanna.methods.merge.adapter_result import WrittenAdapter
from kanna.methods.merge.adapter_written import Contents, Layer, write_adapter
from kanna.methods.merge.known import SCOPE
from kanna.methods.merge.lora_saved import replaced_by, saved_whole
from kanna.methods.merge.plan import DEFAULT_MEMORY, Merged, MergePlan
from kanna.methods.merge.portable import portable
from kanna.methods.merge.resolve import CANCELLED
from kanna.methods.merge.rules.make import Subject, operation
from kanna.methods.merge.run import merge_plan
from kanna.methods.merge.scopes import scope_of, several
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.record import Stages, run_record
from kanna.runs.unfinished import sole_writer

_STAGE = "merge"
# Singular values below this part of the largest are rounding of float32 factors.
_ROUNDING = 1e-6
_WHOLE = "merge the models themselves, without --as-lora"


def merge_lora(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    rank: int | None = None,
    seed: int = 0,
    lax: bool = False,
    force: bool = False,
    max_memory: int = DEFAULT_MEMORY,
    progress: Listener = False,
) -> WrittenAdapter:
    """Merge adapters of one base into an adapter of it, which PEFT loads.

    Of the base only what some adapter saves whole is read.

    Args:
        recipe: Of models that are all written BASE+ADAPTER, and BASE where the method needs a base.
        out: New directory.
        rank: At most, of each layer; by default as many as the merged difference has.
        seed: Of methods that drop entries by chance.
        lax: What looks like a mistake in the recipe is a warning.
        force: Replace `out`, if it is kanna's.
        max_memory: See `merge_plan`.
        progress: Called with (stage, done, total).

    Returns:
        What was written: rank, bytes, and the error of each layer.

    Raises:
        InputError: Other models, slices, tokenizers, or what is wrong with the recipe itself; nothing is
            written then.
    """
    progress = heard(progress)
    started = time.perf_counter()
    if rank is not None and rank < 1:
        raise InputError(f"a rank of {rank} was asked for", "give at least 1")
    plan = merge_plan(recipe, max_memory=max_memory, seed=seed, lax=lax)
    _refuse_one_threshold(plan)
    models = _adapters(plan)
    place = final_name(out)
    refuse_input(place, *(directory for model in plan.inputs.models for directory in directories(model)))
    refuse_existing(place, force)
    stages = Stages(progress)
    with sole_writer(place, force):
        contents, lost = _contents(plan, models, rank, stages)
        size = sum(value.nbytes for value in contents.tensors().values())
        with output_directory(place, force=force, needed_bytes=size) as partial:
            write_adapter(partial, contents, plain(plan.inputs.lead).name)
            _write_lineage(partial, plan, models, rank, lost)
    run = run_record(started, stages.seconds, "cpu")
    lineage.write_run_record(place, run)
    ranks = {one.module: one.rank for one in contents.layers}
    method, warnings = plan.recipe.method, plan.warnings
    return WrittenAdapter(place, ranks, lost, tuple(contents.saved), size, method, warnings, run)


def _contents(
    plan: MergePlan, models: Mapping[int, Adapted], rank: int | None, stages: Stages
) -> tuple[Contents, dict[str, float]]:
    """The merged adapter, and what each layer lost by its rank."""
    replaced = {number: replaced_by(model).keys() for number, model in models.items()}
    whole = [tensor for tensor in plan.tensors if _is_whole(replaced, models, tensor)]
    names = {tensor.spec.name for tensor in whole}
    changed = [
        tensor for tensor in plan.tensors if _changes(models, tensor) and tensor.spec.name not in names
    ]
    for tensor in whole:
        _check_base(plan, tensor)
    layers, lost = [], {}
    for number, tensor in enumerate(changed):
        stages.report(f"{_STAGE}: {tensor.spec.name}", number, len(changed))
        found = _merged(plan, models, tensor, rank)
        if found is not None:
            layers.append(found[0])
            lost[found[0].module] = found[1]
    stages.report(_STAGE, len(changed), len(changed))
    saved = saved_whole(plan, models, whole)
    if not layers:
        raise InputError("nothing is left of what the adapters add", "give other weights or densities")
    if alone := saved.biases.keys() - {one.module for one in layers}:
        raise InputError(f"nothing but its bias is left of {min(alone)}", "give other weights or densities")
    return Contents(tuple(layers), saved.modules, saved.biases), lost


def _refuse_one_threshold(plan: MergePlan) -> None:
    """Coordinates are a layer's own."""
    wide = next((one.values for one in plan.tensors if several(one.values)), None)
    if wide is not None:
        raise InputError(
            f"{plan.recipe.place.name}: the coordinates of adapters are each layer's own, so there is no "
            f"{SCOPE}: {scope_of(wide)}",
            f"leave {SCOPE} out",
        )


def _adapters(plan: MergePlan) -> dict[int, Adapted]:
    """Number of a model in the recipe -> that model; all but the base are adapted, of one base.

    Raises:
        InputError: They are not, or more than the weights of layers is merged.
    """
    if plan.recipe.sliced or plan.before or plan.tokens is not None:
        raise InputError(
            f"{plan.recipe.place.name}: slices, several documents and tokenizers make no adapter", _WHOLE
        )
    places = {plain(model).directory.resolve() for model in plan.inputs.models}
    if len(places) > 1:
        named = ", ".join(sorted(map(str, places)))
        raise InputError(f"{plan.recipe.place.name}: not all adapters are of one base: {named}", _WHOLE)
    found = {}
    for number, (name, model) in enumerate(zip(plan.recipe.models, plan.inputs.models, strict=True)):
        if isinstance(model, Adapted):
            found[number] = model
        elif not (plan.recipe.rule.from_base and name == plan.recipe.base):
            raise InputError(f"{plan.recipe.place.name}: {name} is a model without an adapter", _WHOLE)
    return found


def _is_whole(replaced: Mapping[int, Collection[str]], models: Mapping[int, Adapted], tensor: Merged) -> bool:
    """Whether some adapter has it whole, or adds to a head that is an embedding elsewhere."""
    name = tensor.spec.name
    saved = any(part.tensor in replaced.get(part.model, ()) for part in tensor.parts)
    apart = any(part.tensor != name for part in tensor.parts)
    return tensor.values is not None and (saved or (apart and _changes(models, tensor)))


def _changes(models: Mapping[int, Adapted], tensor: Merged) -> bool:
    return any(
        part.model in models and part.tensor in models[part.model].added.factors for part in tensor.parts
    )


def _merged(
    plan: MergePlan, models: Mapping[int, Adapted], tensor: Merged, rank: int | None
) -> tuple[Layer, float] | None:
    """A layer of the merged adapter, and the share of its squared difference that `rank` left out.

    None where nothing is left of it.
    """
    own = [_pair(models.get(part.model), part.tensor) for part in tensor.parts]
    some = [pair for pair in own if pair is not None]
    rows = torch.linalg.qr(torch.cat([pair.expand for pair in some], 1)).Q
    columns = torch.linalg.qr(torch.cat([pair.reduce for pair in some]).T).Q
    nothing = torch.zeros(rows.shape[1], columns.shape[1], dtype=torch.float64)
    cores = [nothing if pair is None else (rows.T @ pair.expand) @ (pair.reduce @ columns) for pair in own]
    core = _operated(plan, tensor, cores)
    if not bool(core.any()):
        return None
    parts = decompose(core)
    kept = int((parts.values > _ROUNDING * parts.values[0]).sum())
    kept = kept if rank is None else min(kept, rank)
    left, right = parts.factors(kept)
    squares = parts.values.square()
    lost = 0.0 if rank is None else float(squares[kept:].sum() / squares.sum())
    first = some[0]
    return Layer(first.module, rows @ left, right @ columns.T, first.embedding, first.inputs_first), lost


def _operated(plan: MergePlan, tensor: Merged, cores: Sequence[Tensor]) -> Tensor:
    """The core of the result; that of the base is 0."""
    assert tensor.values is not None
    shape = cores[0].shape
    _check_base(plan, tensor)
    subject = Subject(
        tensor.spec.name,
        cores[0].numel(),
        torch.float64,
        len(cores),
        tensor.base,
        tensor.values,
        shape[1],
        plan.seed,
    )
    act = operation(plan.recipe.method, subject)
    for number in range(act.looks):
        act.look(number, [core.flatten() for core in cores])
    return act.merged([core.flatten().clone() for core in cores]).view(shape)


def _check_base(plan: MergePlan, tensor: Merged) -> None:
    """A sum of models has the base once only if their weights sum to 1."""
    if tensor.base >= 0 and plan.recipe.rule.from_base:
        return
    if plan.recipe.method != "linear":
        raise InputError(
            f"{plan.recipe.place.name}: {plan.recipe.method} without a base makes no adapter",
            "give base_model and a method that merges differences",
        )
    assert tensor.values is not None
    total = math.fsum(tensor.values.each("weight"))
    if not tensor.values.one("normalize") and abs(total - 1) > CANCELLED:
        raise InputError(
            f"{plan.recipe.place.name}: the weights of {tensor.spec.name} sum to {total:g}, not to 1, so the "
            "base would be scaled",
            "give normalize: true, or weights that sum to 1, or merge_method: task_arithmetic",
        )


@dataclass(frozen=True)
class _Pair:
    """s B A of one adapter as expand (rows, r) times reduce (r, columns) of the tensor, in float64."""

    module: str
    expand: Tensor
    reduce: Tensor
    embedding: bool
    inputs_first: bool


def _pair(model: Adapted | None, tensor: str) -> _Pair | None:
    if model is None or tensor not in model.added.factors:
        return None
    factors = model.added.factors[tensor]
    if len(factors) > 1:
        raise InputError(
            f"{model.adapter.file} adds to {tensor} as embedding and as head",
            "give one of both, or " + _WHOLE,
        )
    (one,) = factors
    a, b = model.adapter.read(one.a), model.adapter.read(one.b) * one.scale
    embedding = "lora_embedding_" in one.a
    expand, reduce = (a.T, b.T) if one.transposed else (b, a)
    return _Pair(_module(one), expand, reduce, embedding, one.transposed and not embedding)


def _module(factors: Factors) -> str:
    return factors.a.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _write_lineage(
    directory: Path,
    plan: MergePlan,
    models: Mapping[int, Adapted],
    rank: int | None,
    lost: Mapping[str, float],
) -> None:
    base: Checkpoint = plain(plan.inputs.lead)
    digest = lineage.base_hash(base)
    step = lineage.Step(
        method="merge",
        config={"recipe": portable(plan), "as_lora": True, "rank": rank},
        versions=lineage.versions(),
        scores={"lost": dict(lost)},
        inputs=(
            lineage.Input(name=base.name, hash=digest),
            *(lineage.Input(name=one.adapter.name, hash=one.adapter.hash()) for one in models.values()),
        ),
    )
    lineage.write(directory, lineage.Base(name=base.name, hash=digest), (step,))
